"""What a rendered task family is: a way to ask a free scene, and a way to build a balanced item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qmop.vtcbench.draws import Draws
from qmop.vtcbench.scene import COLOURS, Scene


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question about a scene with its one right answer and its difficulty in the family's unit.

    `focus` names the cells of the objects that the answer depends on; empty where it depends on the whole picture.
    """

    question: str
    answer: str
    difficulty: float
    focus: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """A template of questions.

    `build` draws the words of the question and the answer independently first and a scene around them, so that a
    reader of questions alone sits at chance. `ask` puts the question to a scene that exists already (for training,
    where several questions share a picture) and gives `None` where the scene has no answer.
    """

    dimension: str
    task: str
    answers: tuple[str, ...]
    unit: str
    build: Callable[[Draws], tuple[Scene, Asked]]
    ask: Callable[[Scene, Draws], Asked | None]


def cells_of(scene: Scene, *colours: str) -> tuple[int, ...]:
    """The cells of all objects of the given colours."""
    return tuple(thing.cell for thing in scene.things if thing.colour in colours)


def others(*taken: str) -> list[str]:
    """The colours that are not among `taken`."""
    return [colour for colour in COLOURS if colour not in taken]
