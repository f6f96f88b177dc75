"""Local Details: text and small marks among others of their kind. Difficulty: size of the detail, less is harder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from qmop.vtcbench.composing import Level, Wish, compose, fillers, total
from qmop.vtcbench.dimensions.family import Asked, Family, Plan, Words, one_of, others
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.scene import Scene, Thing
from qmop.vtcbench.words import COLOURS, FACE, INKS, LETTERS, MARKS, NUMBERS, SHAPES, TILE

_PATCH = 8
_GLYPH_DOTS = 5
_UNIT = "patches across the detail"


def tile_among_others(draws: Draws, colour: str, detail: str, level: Level) -> Scene:
    """A scene with one tile of a colour; two to four other tiles stand by."""
    wanted = Wish(kind=TILE, colour=colour, detail=detail, asked=True)
    rivals = [Wish(kind=TILE, colour=c) for c in draws.sample(others(COLOURS, colour), draws.integer(2, 5))]
    rest = fillers(draws, total(draws, level) - 1 - len(rivals), kinds=(*SHAPES, FACE))
    return compose(draws, [wanted, *rivals, *rest], level)


def lone_tile(scene: Scene, draws: Draws, details: Sequence[str]) -> Thing | None:
    """Any tile that is the only one of its colour and shows one of the details."""
    tiles = [tile for tile in scene.having(kind=TILE) if tile is scene.only(kind=TILE, colour=tile.colour)]
    return one_of(draws, [tile for tile in tiles if tile.detail in details])


class _OnTile(Family):
    """What is written on the tile of a colour."""

    dimension, unit = "LD", _UNIT

    def words(self, draws: Draws, level: Level) -> Words:
        """The blanks of the question."""
        del level
        return (draws.choice(COLOURS),)

    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan is true."""
        return tile_among_others(draws, plan.words[0], plan.answer, level)

    def offer(self, scene: Scene, draws: Draws) -> Words | None:
        """Words to ask this scene with."""
        found = lone_tile(scene, draws, self.answers)
        return None if found is None else (found.colour,)

    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with what the scene answers."""
        tile = scene.only(kind=TILE, colour=words[0])
        if tile is None or tile.detail not in self.answers:
            return None
        return self.asked(words, tile.detail, _GLYPH_DOTS * scene.glyph_scale / _PATCH, [tile])


class TileNumber(_OnTile):
    """The number on a tile."""

    task, answers = "tile_number", NUMBERS
    template = "what number is on the {} tile ?"


class TileLetter(_OnTile):
    """The letter on a tile."""

    task, answers = "tile_letter", LETTERS
    template = "what letter is on the {} tile ?"


class _OnShape(Family):
    """What mark a shape of a colour carries; others share its shape or its colour."""

    dimension, unit = "LD", _UNIT

    def words(self, draws: Draws, level: Level) -> Words:
        """The blanks of the question."""
        del level
        return (draws.choice(COLOURS), draws.choice(SHAPES))

    def stage(self, draws: Draws, plan: Plan, level: Level) -> Scene:
        """A scene of which the plan is true."""
        colour, kind = plan.words
        wanted = self._wish(kind, colour, plan.answer)
        alike = [Wish(kind=kind, colours=others(COLOURS, colour)) for _ in range(draws.integer(1, 4))]
        alike += [Wish(colour=colour, kinds=others(SHAPES, kind)) for _ in range(draws.integer(1, 4))]
        rest = fillers(draws, total(draws, level) - 1 - len(alike), colours=others(COLOURS, colour))
        return compose(draws, [wanted, *alike, *rest], level)

    def offer(self, scene: Scene, draws: Draws) -> Words | None:
        """Words to ask this scene with."""
        named = [t for t in scene.things if t.ink and t is scene.only(kind=t.kind, colour=t.colour)]
        found = one_of(draws, named)
        return None if found is None else (found.colour, found.kind)

    def look(self, scene: Scene, words: Words) -> Asked | None:
        """The question with what the scene answers."""
        thing = scene.only(colour=words[0], kind=words[1])
        if thing is None or thing.large:
            return None
        return self.asked(words, self._read(thing), scene.mark_size / _PATCH, [thing])

    @abstractmethod
    def _wish(self, kind: str, colour: str, answer: str) -> Wish:
        """What the asked-for shape carries, where the answer is this."""

    @abstractmethod
    def _read(self, thing: Thing) -> str:
        """The answer, as a shape gives it."""


class MarkKind(_OnShape):
    """The form of the mark."""

    task, answers = "mark", MARKS
    template = "what mark is on the {} {} ?"

    def _wish(self, kind: str, colour: str, answer: str) -> Wish:
        return Wish(kind=kind, colour=colour, detail=answer, asked=True)

    def _read(self, thing: Thing) -> str:
        return thing.detail


class MarkInk(_OnShape):
    """The colour of the mark."""

    task, answers = "mark_ink", INKS
    template = "what colour is the mark on the {} {} ?"

    def _wish(self, kind: str, colour: str, answer: str) -> Wish:
        return Wish(kind=kind, colour=colour, ink=answer, asked=True)

    def _read(self, thing: Thing) -> str:
        return thing.ink


FAMILIES = (TileNumber(), TileLetter(), MarkKind(), MarkInk())
