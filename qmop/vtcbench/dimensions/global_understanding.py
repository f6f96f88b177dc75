"""Global Understanding: the whole scene, its main object and what prevails in it. Difficulty: objects in the way."""

from __future__ import annotations

from collections import Counter

from qmop.vtcbench.composing import Level, Wish, compose, fillers, total
from qmop.vtcbench.dimensions.family import Asked, Family, Plan, Words, others
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.scene import CELLS, Scene, on_side
from qmop.vtcbench.words import COLOURS, FACE, KINDS, SHAPES, SIDES

_LEAD = 2  # what prevails does so by two objects at least
_UNIT = "other objects"


class MainShape(Family):
    """The shape of the one large object."""

    dimension, task, answers, unit = "GU", "main_shape", SHAPES, _UNIT
    template = "what shape is the largest object ?"

    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan is true."""
        rest = fillers(draws, total(draws, level) - 1)
        return compose(draws, [Wish(kind=plan.answer, large=True, asked=True), *rest], level)

    def offer(self, scene: Scene, draws: Draws) -> Words | None:
        """Words to ask this scene with."""
        del draws
        return () if scene.largest else None

    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with what the scene answers."""
        main = scene.largest
        return None if main is None else self.asked(words, main.kind, len(scene.things) - 1, [main])


class _Common(Family):
    """What prevails among the objects."""

    dimension, unit = "GU", _UNIT

    def offer(self, scene: Scene, draws: Draws) -> Words | None:
        """Words to ask this scene with."""
        del draws
        return None if scene.largest else ()

    def _shares(self, draws: Draws, plan: Plan, level: Level) -> list[str]:
        """One answer per object: four to six of the right one, at most two less of any other."""
        lead = draws.integer(4, 7)
        rivals = others(self.answers, plan.answer) * (lead - _LEAD)
        return [plan.answer] * lead + draws.sample(rivals, min(total(draws, level) - lead, len(rivals)))

    def _winner(self, found: list[str]) -> str | None:
        (first, most), *rest = [*Counter(found).most_common(2), ("", 0)]
        return first if first and most >= rest[0][1] + _LEAD else None


class CommonColour(_Common):
    """The colour of most objects."""

    task, answers = "common_colour", COLOURS
    template = "what colour is most common ?"

    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan is true."""
        colours = self._shares(draws, plan, level)
        kinds = [wish.kind for wish in fillers(draws, len(colours))]
        wishes = [Wish(kind=k, colour=c, asked=True) for k, c in zip(kinds, colours, strict=True)]
        return compose(draws, wishes, level)

    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with what the scene answers."""
        winner = self._winner([thing.colour for thing in scene.things])
        if winner is None:
            return None
        most = scene.having(colour=winner)
        return self.asked(words, winner, len(scene.things) - len(most), most)


class CommonShape(_Common):
    """The shape of most objects."""

    task, answers = "common_shape", SHAPES
    template = "what shape is most common ?"

    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan is true."""
        wishes = [Wish(kind=kind, asked=True) for kind in self._shares(draws, plan, level)]
        return compose(draws, wishes, level)

    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with what the scene answers."""
        winner = self._winner([thing.kind for thing in scene.things if thing.kind in SHAPES])
        if winner is None:
            return None
        most = scene.having(kind=winner)
        return self.asked(words, winner, len(scene.things) - len(most), most)


class BusySide(Family):
    """The half of the picture that holds most objects; in the way are those of the other half."""

    dimension, task, answers, unit = "GU", "busy_side", SIDES, "objects on the other side"
    template = "on which side are most objects ?"
    _MARGIN = 3

    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan is true."""
        side = plan.answer
        count = total(draws, level)
        far = draws.integer(2, 4) if level == "hard" else draws.integer(0, count // 2 - self._MARGIN + 1)
        quarters = ("top", "bottom") if side in ("left", "right") else ("left", "right")
        wishes = []
        for number, wish in enumerate(fillers(draws, count, kinds=others(KINDS, FACE))):
            near, quarter = number >= far, quarters[number % 2]
            cells = [c for c in range(CELLS) if on_side(c, side) == near and on_side(c, quarter)]
            wishes.append(Wish(kind=wish.kind, cells=cells, asked=True))
        return compose(draws, wishes, level)

    def offer(self, scene: Scene, draws: Draws) -> Words | None:
        """Words to ask this scene with."""
        del draws
        return None if scene.largest else ()

    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with what the scene answers."""
        ranked = Counter({side: sum(on_side(t.cell, side) for t in scene.things) for side in SIDES}).most_common()
        (side, most), (_, next_most) = ranked[:2]
        if most - next_most < self._MARGIN:
            return None
        return self.asked(words, side, len(scene.things) - most, scene.things)


FAMILIES = (MainShape(), CommonColour(), CommonShape(), BusySide())
