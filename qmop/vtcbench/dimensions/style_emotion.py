"""Style and Emotion: mood, texture, light and feeling. Difficulty: the contrast that shows them, less is harder."""

from __future__ import annotations

from typing import ClassVar

from qmop.vtcbench.composing import Level, Wish, compose, fillers, total
from qmop.vtcbench.dimensions.family import Asked, Family, Plan, Words, others
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.scene import Scene
from qmop.vtcbench.words import FACE, FEELINGS, KINDS, MOODS, SIDES, TEXTURES

_UNIT = "grey levels of contrast"


class _OfGround(Family):
    """A question about the ground; everything else is free."""

    dimension, unit, local = "SE", _UNIT, False
    field: ClassVar[str]
    """Of `Ground`; its contrast is `<field>_contrast`."""

    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan is true."""
        wishes = [Wish(kind=wish.kind, asked=True) for wish in fillers(draws, total(draws, level))]
        return compose(draws, wishes, level, **{self.field: plan.answer})

    def offer(self, scene: Scene, draws: Draws) -> Words | None:
        """Words to ask this scene with."""
        del scene, draws
        return ()

    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with what the scene answers."""
        ground = scene.ground
        return self.asked(words, getattr(ground, self.field), getattr(ground, f"{self.field}_contrast"))


class Mood(_OfGround):
    """Warm, cold, dark or bright."""

    task = field = "mood"
    answers, template = MOODS, "what is the mood of the picture ?"


class Texture(_OfGround):
    """The pattern of the ground."""

    task = field = "texture"
    answers, template = TEXTURES, "what is the texture of the background ?"


class Light(_OfGround):
    """The side from which the light comes."""

    task = field = "light"
    answers, template = SIDES, "where does the light come from ?"


class Feeling(Family):
    """How the one face feels."""

    dimension, task, answers, unit = "SE", "feeling", FEELINGS, _UNIT
    template = "how does the face feel ?"

    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan is true."""
        rest = fillers(draws, total(draws, level) - 1, kinds=others(KINDS, FACE))
        return compose(draws, [Wish(kind=FACE, detail=plan.answer, asked=True), *rest], level)

    def offer(self, scene: Scene, draws: Draws) -> Words | None:
        """Words to ask this scene with."""
        del draws
        return () if scene.only(kind=FACE) else None

    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with what the scene answers."""
        face = scene.only(kind=FACE)
        return None if face is None else self.asked(words, face.detail, scene.face_contrast, [face])


FAMILIES = (Mood(), Texture(), Light(), Feeling())
