"""Local Details: text and small marks that a coarse grid loses first."""

from __future__ import annotations

from qmop.vtcbench.dimensions.family import Asked, Family, others
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.scene import COLOURS, NUMBERS, SIGN, Scene, Thing, compose, random_thing, with_digit

_DIGIT_PATCHES = 10 / 8  # a digit is ten pixels wide, a patch eight


def _question(colour: str) -> str:
    return f"what digit is on the {colour} sign ?"


def _asked(sign: Thing) -> Asked:
    return Asked(
        question=_question(sign.colour),
        answer=NUMBERS[sign.digit or 0],
        difficulty=_DIGIT_PATCHES,
        focus=(sign.cell,),
    )


def _ask(scene: Scene, draws: Draws) -> Asked | None:
    signs = [t for t in scene.things if t.shape == SIGN and scene.count(shape=SIGN, colour=t.colour) == 1]
    if not signs:
        return None
    return _asked(draws.choice(signs))


def _build(draws: Draws) -> tuple[Scene, Asked]:
    colour, digit = draws.choice(COLOURS), draws.integer(0, 10)
    rivals = [(SIGN, other) for other in draws.sample(others(colour), draws.integer(1, 4))]
    free = [random_thing(draws) for _ in range(draws.integer(0, 3))]
    scene = compose(draws, [(SIGN, colour), *rivals, *[thing for thing in free if thing[0] != SIGN]])
    things = [with_digit(t, digit) if (t.shape, t.colour) == (SIGN, colour) else t for t in scene.things]
    scene = Scene(things=tuple(things), mood=scene.mood, texture=scene.texture)
    return scene, _asked(next(t for t in things if (t.shape, t.colour) == (SIGN, colour)))


FAMILIES = (
    Family(dimension="LD", task="sign_digit", answers=NUMBERS, unit="patches across the digit", build=_build, ask=_ask),
)
