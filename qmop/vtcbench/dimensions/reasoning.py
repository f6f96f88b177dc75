"""Reasoning and Common sense: several steps of inference grounded in the picture."""

from __future__ import annotations

from qmop.vtcbench.dimensions.family import Asked, Family, cells_of, others
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.scene import COLOURS, SHAPES, SIGN, Scene, compose

_STEPS = 3.0  # count one colour, count the other, compare
_ANY_SHAPE = (*SHAPES, SIGN)


def _question(more: str, fewer: str) -> str:
    return f"are there more {more} objects than {fewer} objects ?"


def _asked(scene: Scene, more: str, fewer: str) -> Asked:
    answer = "yes" if scene.count(colour=more) > scene.count(colour=fewer) else "no"
    return Asked(question=_question(more, fewer), answer=answer, difficulty=_STEPS, focus=cells_of(scene, more, fewer))


def _ask(scene: Scene, draws: Draws) -> Asked | None:
    first = draws.choice(scene.things).colour
    second = draws.choice(others(first))
    more, fewer = draws.sample((first, second), 2)
    return _asked(scene, more, fewer)


def _build(draws: Draws) -> tuple[Scene, Asked]:
    yes = bool(draws.integer(0, 2))
    more, fewer = draws.sample(COLOURS, 2)
    low = draws.integer(0, 3)
    high = low + draws.integer(1, 3)
    counts = (high, low) if yes else (low, high)
    colours = [more] * counts[0] + [fewer] * counts[1]
    colours += [draws.choice(others(more, fewer)) for _ in range(draws.integer(0, 3))]
    scene = compose(draws, [(draws.choice(_ANY_SHAPE), colour) for colour in colours])
    return scene, _asked(scene, more, fewer)


FAMILIES = (Family(dimension="RC", task="more_or_fewer", answers=("yes", "no"), unit="steps", build=_build, ask=_ask),)
