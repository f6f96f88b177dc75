"""Style and Emotion: palette, texture and mood of the whole picture."""

from __future__ import annotations

from qmop.vtcbench.dimensions.family import Asked, Family
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.scene import MOODS, Scene, compose, random_thing

_QUESTION = "what is the mood of the picture ?"


def _ask(scene: Scene, draws: Draws) -> Asked | None:
    del draws
    return Asked(question=_QUESTION, answer=scene.mood, difficulty=len(scene.things))


def _build(draws: Draws) -> tuple[Scene, Asked]:
    answer = draws.choice(MOODS)
    wanted = [random_thing(draws) for _ in range(draws.integer(2, 7))]
    scene = compose(draws, wanted, mood=answer)
    return scene, Asked(question=_QUESTION, answer=answer, difficulty=len(wanted))


FAMILIES = (Family(dimension="SE", task="mood", answers=MOODS, unit="objects", build=_build, ask=_ask),)
