"""Global Understanding: the whole scene and its main object."""

from __future__ import annotations

from qmop.vtcbench.dimensions.family import Asked, Family
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.scene import COLOURS, SHAPES, Scene, compose, random_thing

_QUESTION = "what shape is the largest object ?"


def _ask(scene: Scene, draws: Draws) -> Asked | None:
    del draws
    main = scene.largest
    if main is None:
        return None
    return Asked(question=_QUESTION, answer=main.shape, difficulty=len(scene.things) - 1, focus=(main.cell,))


def _build(draws: Draws) -> tuple[Scene, Asked]:
    answer = draws.choice(SHAPES)
    distractors = [random_thing(draws) for _ in range(draws.integer(1, 6))]
    scene = compose(draws, [(answer, draws.choice(COLOURS)), *distractors], large=0)
    focus = tuple(thing.cell for thing in scene.things if thing is scene.largest)
    return scene, Asked(question=_QUESTION, answer=answer, difficulty=len(distractors), focus=focus)


FAMILIES = (Family(dimension="GU", task="main_shape", answers=SHAPES, unit="other objects", build=_build, ask=_ask),)
