"""Reasoning and Common sense: inference grounded in the picture. Difficulty: its steps."""

from __future__ import annotations

from qmop.vtcbench.composing import Level, Wish, compose, fillers, total
from qmop.vtcbench.dimensions.family import Asked, Family, Plan, Words, others
from qmop.vtcbench.dimensions.local_details import lone_tile, tile_among_others
from qmop.vtcbench.dimensions.spatial_counting import lone
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.scene import Scene
from qmop.vtcbench.words import COLOURS, FACE, KINDS, NUMBERS, SHAPES, TILE

_YES_NO = ("yes", "no")
_UNIT = "steps"


def _told(true: bool) -> str:
    return "yes" if true else "no"


class MoreOrFewer(Family):
    """Whether one colour has more objects than another: count, count, compare."""

    dimension, task, answers, unit = "RC", "more_or_fewer", _YES_NO, _UNIT
    template = "are there more {} than {} objects ?"
    _STEPS = 3

    def words(self, draws: Draws, level: Level) -> Words:
        """The blanks of the question."""
        del level
        return tuple(draws.sample(COLOURS, 2))

    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan is true."""
        low = draws.integer(0, 3)
        high = low + (1 if level == "hard" else draws.integer(1, 4))
        counts = (high, low) if plan.answer == "yes" else (low, high)
        colours = [colour for colour, count in zip(plan.words, counts, strict=True) for _ in range(count)]
        kinds = [wish.kind for wish in fillers(draws, len(colours))]
        wishes = [Wish(kind=k, colour=c, asked=True) for k, c in zip(kinds, colours, strict=True)]
        rest = total(draws, level) - len(colours)
        return compose(
            draws,
            [*wishes, *fillers(draws, rest, kinds=others(KINDS, FACE), colours=others(COLOURS, *plan.words))],
            level,
        )

    def offer(self, scene: Scene, draws: Draws) -> Words | None:
        """Words to ask this scene with."""
        if scene.largest:
            return None
        first = draws.choice(scene.things).colour
        return tuple(draws.sample((first, draws.choice(others(COLOURS, first))), 2))

    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with what the scene answers."""
        more, fewer = (scene.having(colour=colour) for colour in words)
        if len(more) == len(fewer):
            return None
        return self.asked(words, _told(len(more) > len(fewer)), self._STEPS, [*more, *fewer])


class MoreThanTile(Family):
    """One more, or on the hard level two more, than the number on a tile: find it, read it, count on."""

    dimension, task, unit = "RC", "more_than_tile", _UNIT
    answers = NUMBERS[2:]
    template = "what is {} more than the number on the {} tile ?"
    _MORE = NUMBERS[1:3]

    def words(self, draws: Draws, level: Level) -> Words:
        """The blanks of the question."""
        return (self._MORE[level == "hard"], draws.choice(COLOURS))

    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan is true."""
        more, colour = plan.words
        shown = NUMBERS[NUMBERS.index(plan.answer) - NUMBERS.index(more)]
        return tile_among_others(draws, colour, shown, level)

    def offer(self, scene: Scene, draws: Draws) -> Words | None:
        """Words to ask this scene with."""
        more = draws.integer(1, 3)
        found = lone_tile(scene, draws, self._shown(more))
        return None if found is None else (NUMBERS[more], found.colour)

    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with what the scene answers."""
        tile, more = scene.only(kind=TILE, colour=words[1]), NUMBERS.index(words[0])
        if tile is None or tile.detail not in self._shown(more):
            return None
        return self.asked(words, NUMBERS[NUMBERS.index(tile.detail) + more], 1 + more, [tile])

    def _shown(self, more: int) -> tuple[str, ...]:
        """What a tile may show whose answer, so much more, is one of the family's."""
        return tuple(NUMBERS[NUMBERS.index(answer) - more] for answer in self.answers)


class Weather(Family):
    """What one would need in the scene: see its mood, know what that calls for."""

    dimension, task, answers, unit = "RC", "weather", _YES_NO, _UNIT
    local = False
    template = "would you need a {} here ?"
    _NEEDS = {"coat": {"cold": "yes", "warm": "no"}, "lamp": {"dark": "yes", "bright": "no"}}  # noqa: RUF012
    _STEPS = 2

    def words(self, draws: Draws, level: Level) -> Words:
        """The blanks of the question."""
        del level
        return (draws.choice(tuple(self._NEEDS)),)

    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan is true."""
        moods = {answer: mood for mood, answer in self._NEEDS[plan.words[0]].items()}
        wishes = [Wish(kind=wish.kind, asked=True) for wish in fillers(draws, total(draws, level))]
        return compose(draws, wishes, level, mood=moods[plan.answer])

    def offer(self, scene: Scene, draws: Draws) -> Words | None:
        """Words to ask this scene with."""
        del draws
        return ("coat",) if scene.ground.mood in ("cold", "warm") else ("lamp",)

    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with what the scene answers."""
        answer = self._NEEDS[words[0]].get(scene.ground.mood)
        return None if answer is None else self.asked(words, answer, self._STEPS)


class MayGo(Family):
    """Whether a shape, taken as a traffic light, lets cars go: find it, know the rule of green and red."""

    dimension, task, answers, unit = "RC", "may_go", _YES_NO, _UNIT
    template = "the {} is a traffic light , may cars go ?"
    _RULE = {"green": "yes", "red": "no"}  # noqa: RUF012
    _STEPS = 2

    def words(self, draws: Draws, level: Level) -> Words:
        """The blanks of the question."""
        del level
        return (draws.choice(SHAPES),)

    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan is true."""
        (kind,) = plan.words
        colours = {answer: colour for colour, answer in self._RULE.items()}
        rest = fillers(draws, total(draws, level) - 1, kinds=others(KINDS, kind))
        return compose(draws, [Wish(kind=kind, colour=colours[plan.answer], asked=True), *rest], level)

    def offer(self, scene: Scene, draws: Draws) -> Words | None:
        """Words to ask this scene with."""
        lights = [thing for thing in lone(scene) if thing.colour in self._RULE]
        return (draws.choice(lights).kind,) if lights else None

    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with what the scene answers."""
        found = scene.only(kind=words[0])
        if found is None or found.colour not in self._RULE:
            return None
        return self.asked(words, self._RULE[found.colour], self._STEPS, [found])


FAMILIES = (MoreOrFewer(), MoreThanTile(), Weather(), MayGo())
