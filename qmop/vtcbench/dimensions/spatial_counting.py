"""Spatial and Counting: how many, and where. Difficulty: objects in the way."""

from __future__ import annotations

from itertools import combinations

from qmop.vtcbench.composing import Level, Wish, compose, fillers, total
from qmop.vtcbench.dimensions.family import Asked, Family, Plan, Words, one_of, others
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.scene import CELLS, LATTICE, Scene, Thing, cells_at
from qmop.vtcbench.words import COLOURS, FACE, KINDS, NUMBERS, PLACES, SHAPES

_UNIT = "other objects"


class CountColour(Family):
    """How many objects have a colour, one to four."""

    dimension, task, answers, unit = "SC", "count_colour", NUMBERS[1:5], _UNIT
    template = "how many {} objects are there ?"

    def words(self, draws: Draws, level: Level) -> Words:
        """The blanks of the question."""
        del level
        return (draws.choice(COLOURS),)

    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan is true."""
        (colour,), count = plan.words, NUMBERS.index(plan.answer)
        kinds = [wish.kind for wish in fillers(draws, count)]
        rest = fillers(draws, total(draws, level) - count, kinds=others(KINDS, FACE), colours=others(COLOURS, colour))
        return compose(draws, [*(Wish(kind=k, colour=colour, asked=True) for k in kinds), *rest], level)

    def offer(self, scene: Scene, draws: Draws) -> Words | None:
        """Words to ask this scene with."""
        return None if scene.largest else (draws.choice(scene.things).colour,)

    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with what the scene answers."""
        counted = scene.having(colour=words[0])
        answer = NUMBERS[min(len(counted), 9)]
        return self.asked(words, answer, len(scene.things) - len(counted), counted) if answer in self.answers else None


class Place(Family):
    """Where the only object of a shape stands, out of nine places."""

    dimension, task, answers, unit = "SC", "place", PLACES, _UNIT
    template = "where is the {} ?"

    def words(self, draws: Draws, level: Level) -> Words:
        """The blanks of the question."""
        del level
        return (draws.choice(SHAPES),)

    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan is true."""
        (kind,) = plan.words
        wanted = Wish(kind=kind, cells=cells_at(PLACES.index(plan.answer)), asked=True)
        rest = fillers(draws, total(draws, level) - 1, kinds=others(KINDS, kind))
        return compose(draws, [wanted, *rest], level)

    def offer(self, scene: Scene, draws: Draws) -> Words | None:
        """Words to ask this scene with."""
        found = one_of(draws, lone(scene))
        return None if found is None else (found.kind,)

    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with what the scene answers."""
        found = scene.only(kind=words[0])
        if found is None:
            return None
        return self.asked(words, PLACES[found.place], len(scene.things) - 1, [found])


class Relation(Family):
    """Whether one shape is to the left of, or above, another."""

    dimension, task, answers, unit = "SC", "relation", ("yes", "no"), _UNIT
    template = "is the {} {} the {} ?"
    RELATIONS = ("left of", "above")

    def words(self, draws: Draws, level: Level) -> Words:
        """The blanks of the question."""
        del level
        first, second = draws.sample(SHAPES, 2)
        return (first, draws.choice(self.RELATIONS), second)

    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan is true."""
        first, relation, second = plan.words
        low, high = sorted(draws.sample(range(LATTICE), 2))
        lines = (low, high) if plan.answer == "yes" else (high, low)
        pair = [
            Wish(kind=kind, cells=_line(relation, line), asked=True)
            for kind, line in zip((first, second), lines, strict=True)
        ]
        rest = fillers(draws, total(draws, level) - 2, kinds=others(KINDS, first, second))
        return compose(draws, [*pair, *rest], level)

    def offer(self, scene: Scene, draws: Draws) -> Words | None:
        """Words to ask this scene with."""
        pairs = list(combinations(lone(scene), 2))
        if not pairs:
            return None
        first, second = draws.shuffled(draws.choice(pairs))
        return first.kind, draws.choice(self.RELATIONS), second.kind

    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with what the scene answers."""
        first, second = scene.only(kind=words[0]), scene.only(kind=words[2])
        if first is None or second is None or first.large or second.large:
            return None
        here, there = (_at(words[1], thing) for thing in (first, second))
        if here == there:
            return None
        return self.asked(words, "yes" if here < there else "no", len(scene.things) - 2, [first, second])


class ShapeAt(Family):
    """The shape of the only object at a place."""

    dimension, task, answers, unit = "SC", "shape_at", SHAPES, _UNIT
    template = "what shape is at the {} ?"

    def words(self, draws: Draws, level: Level) -> Words:
        """The blanks of the question."""
        del level
        return (draws.choice(PLACES),)

    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan is true."""
        here = cells_at(PLACES.index(plan.words[0]))
        wanted = Wish(kind=plan.answer, cells=here, asked=True)
        elsewhere = [cell for cell in range(CELLS) if cell not in here]
        return compose(draws, [wanted, *fillers(draws, total(draws, level) - 1, cells=elsewhere)], level)

    def offer(self, scene: Scene, draws: Draws) -> Words | None:
        """Words to ask this scene with."""
        alone = [t for t in scene.things if t.kind in SHAPES and sum(t.place == o.place for o in scene.things) == 1]
        found = one_of(draws, alone)
        return None if found is None else (PLACES[found.place],)

    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with what the scene answers."""
        found = [thing for thing in scene.things if PLACES[thing.place] == words[0]]
        if len(found) != 1 or found[0].kind not in SHAPES:
            return None
        return self.asked(words, found[0].kind, len(scene.things) - 1, found)


def lone(scene: Scene) -> list[Thing]:
    """The objects that are the only ones of their shape."""
    return [thing for kind in SHAPES if (thing := scene.only(kind=kind)) is not None]


def _line(relation: str, number: int) -> list[int]:
    """The cells of a column for `left of`, of a row for `above`."""
    return [c for c in range(CELLS) if (c % LATTICE if relation == "left of" else c // LATTICE) == number]


def _at(relation: str, thing: Thing) -> int:
    """The column of an object for `left of`, its row for `above`."""
    return thing.cell % LATTICE if relation == "left of" else thing.cell // LATTICE


FAMILIES = (CountColour(), Place(), Relation(), ShapeAt())
