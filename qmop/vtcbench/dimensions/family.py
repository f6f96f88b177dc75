"""What a rendered task family is: a question with its answer first, then a scene around them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from qmop.vtcbench.composing import Level
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.scene import Scene, Thing

Words = tuple[str, ...]
"""What fills the blanks of a family's question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A question and its answer before there is a scene: both drawn, neither from the other."""

    words: Words
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A question about a scene with its one right answer and its difficulty in the family's unit.

    `focus` names the cells of the objects that the answer depends on; empty where it depends on the ground.
    """

    task: str
    question: str
    answer: str
    difficulty: float
    focus: tuple[int, ...] = ()


class Family(ABC):
    """A template of questions with a fixed set of answers.

    `pose` draws the words of the question and the answer independently, so that a reader of questions alone sits at
    chance, and needs no scene, so it is fast; `stage` draws a scene of which the answer is true. `look` reads the
    answer off any scene, `offer` finds words that a scene can be asked with: training puts several questions to one
    picture.
    """

    dimension: ClassVar[str]
    task: ClassVar[str]
    answers: ClassVar[tuple[str, ...]]
    unit: ClassVar[str]
    """Of the difficulty."""
    template: ClassVar[str]
    local: ClassVar[bool] = True
    """Whether the answer depends on objects, not on the ground."""

    def pose(self, draws: Draws, level: Level) -> Plan:
        """Words and answer, independent of each other, every answer as likely."""
        return Plan(words=self.words(draws, level), answer=draws.choice(self.answers))

    def words(self, draws: Draws, level: Level) -> Words:
        """Words for the blanks; none by default."""
        del draws, level
        return ()

    @abstractmethod
    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan's answer is true."""

    @abstractmethod
    def offer(self, scene: Scene, draws: Draws) -> Words | None:
        """Words to ask a scene with, `None` where there is nothing to ask."""

    @abstractmethod
    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with the answer that the scene gives, `None` where it gives no single one."""

    def build(self, draws: Draws, level: Level) -> tuple[Scene, Asked]:
        """A scene and its question, balanced."""
        plan = self.pose(draws, level)
        scene = self.stage(draws, plan, level)
        asked = self.look(scene, plan.words)
        assert asked is not None, f"{self.task} staged a scene that it cannot ask"
        assert asked.answer == plan.answer, f"{self.task} staged {asked.answer}, planned was {plan.answer}"
        return scene, asked

    def ask(self, scene: Scene, draws: Draws) -> Asked | None:
        """A question about a scene that exists already."""
        words = self.offer(scene, draws)
        return None if words is None else self.look(scene, words)

    def asked(self, words: Words, answer: str, difficulty: float, focus: Iterable[Thing] = ()) -> Asked:
        """A finished question; the focus is given as objects."""
        cells = tuple(cell for thing in focus for cell in thing.cells)
        question = self.template.format(*words)
        return Asked(task=self.task, question=question, answer=answer, difficulty=difficulty, focus=cells)


def others(options: Sequence[str], *taken: str) -> list[str]:
    """The options that are not taken."""
    return [option for option in options if option not in taken]


def one_of(draws: Draws, options: Sequence[Thing]) -> Thing | None:
    """Any of the objects, `None` if there are none."""
    return draws.choice(options) if options else None
