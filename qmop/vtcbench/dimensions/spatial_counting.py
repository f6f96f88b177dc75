"""Spatial and Counting: how many, and where."""

from __future__ import annotations

from qmop.vtcbench.dimensions.family import Asked, Family, cells_of, others
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.scene import COLOURS, NUMBERS, SHAPES, SIGN, Scene, compose

_ANSWERS = NUMBERS[1:5]
_ANY_SHAPE = (*SHAPES, SIGN)


def _question(colour: str) -> str:
    return f"how many {colour} objects are there ?"


def _asked(scene: Scene, colour: str, count: int) -> Asked:
    return Asked(
        question=_question(colour),
        answer=NUMBERS[count],
        difficulty=len(scene.things) - count,
        focus=cells_of(scene, colour),
    )


def _ask(scene: Scene, draws: Draws) -> Asked | None:
    colour = draws.choice(scene.things).colour
    count = scene.count(colour=colour)
    return _asked(scene, colour, count) if NUMBERS[count] in _ANSWERS else None


def _build(draws: Draws) -> tuple[Scene, Asked]:
    colour, count, distractors = draws.choice(COLOURS), draws.integer(1, 5), draws.integer(0, 4)
    wanted = [(draws.choice(_ANY_SHAPE), colour) for _ in range(count)]
    wanted += [(draws.choice(_ANY_SHAPE), draws.choice(others(colour))) for _ in range(distractors)]
    scene = compose(draws, wanted)
    return scene, _asked(scene, colour, count)


FAMILIES = (
    Family(dimension="SC", task="count_colour", answers=_ANSWERS, unit="other objects", build=_build, ask=_ask),
)
