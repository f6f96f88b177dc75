"""Wishes to scenes: objects with some attributes fixed find cells, and everything left open is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from qmop.vtcbench.draws import Draws
from qmop.vtcbench.scene import CELLS, Ground, Scene, Thing, cells_at, held_out, place_of, sorted_things
from qmop.vtcbench.words import (
    COLOURS,
    FACE,
    INKS,
    KINDS,
    LETTERS,
    MOODS,
    NUMBERS,
    PLACES,
    SHAPES,
    SIDES,
    TEXTURES,
    TILE,
    details_of,
)

Level = Literal["core", "hard", "held_out"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""`core` as in training; `hard` with smaller details, less contrast and more in the way; `held_out` as core, but the
objects asked for stand in combinations of kind, colour and place that training never shows."""

FEWEST, MOST = 8, 14
RADIUS = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """An object as far as it is wanted; what is `None` is drawn.

    `asked` objects obey the level: held out where it says so. Others are always combinations of training.
    """

    kind: str | None = None
    colour: str | None = None
    cells: Sequence[int] | None = None
    detail: str | None = None
    ink: str | None = None
    large: bool = False
    asked: bool = False
    kinds: Sequence[str] = SHAPES
    """Which kinds to draw from."""
    colours: Sequence[str] = COLOURS
    """Which colours to draw from."""


def total(draws: Draws, level: Level) -> int:
    """How many objects a scene gets: 8 to 14, on the hard level 12 to 14."""
    return draws.integer(12 if level == "hard" else FEWEST, MOST + 1)


def fillers(
    draws: Draws,
    count: int,
    *,
    kinds: Sequence[str] = KINDS,
    colours: Sequence[str] = COLOURS,
    cells: Sequence[int] | None = None,
) -> list[Wish]:
    """Objects that only stand in the way, at most one face among them."""
    wishes = []
    left = list(kinds)
    for _ in range(count):
        kind = draws.choice(left)
        if kind == FACE:
            left.remove(FACE)
            left = left or list(SHAPES)
        wishes.append(Wish(kind=kind, colours=colours, cells=cells))
    return wishes


def compose(draws: Draws, wishes: Iterable[Wish], level: Level, **ground: object) -> Scene:
    """A scene in which every wish is fulfilled.

    Args:
        draws: the stream to draw from.
        wishes: the objects; those with cells of their own, large ones and asked-for ones come first.
        level: how hard, and whether asked-for objects are held-out combinations.
        ground: fields of `Ground` that are fixed.
    """
    hard = level == "hard"
    free = set(range(CELLS))
    things = []
    for wish in sorted(wishes, key=lambda wish: (wish.cells is None, not wish.large, not wish.asked)):
        thing = _fulfil(draws, wish, free, level)
        free -= set(thing.cells)
        things.append(thing)
    return Scene(
        things=sorted_things(iter(things)),
        ground=_ground(draws, hard, ground),
        glyph_scale=1 if hard else 2,
        mark_size=5 if hard else 7,
        face_contrast=draws.integer(60, 100) if hard else draws.integer(160, 240),
    )


def _fulfil(draws: Draws, wish: Wish, free: set[int], level: Level) -> Thing:
    """The first place and colour that agree with the wish and with what is held out."""
    kind = wish.kind or draws.choice(wish.kinds)
    found = _spot(draws, wish, kind, free, held=wish.asked and level == "held_out")
    if found is None:  # no held-out combination is left for it
        found = _spot(draws, wish, kind, free, held=False)
    assert found is not None, f"{wish} finds no cell among {sorted(free)}"
    cell, colour = found
    radius = draws.integer(12, 15) if wish.large else RADIUS
    reach = (2 * RADIUS + 1 if wish.large else RADIUS + 1) - radius
    return Thing(
        kind=kind,
        colour=colour,
        cell=cell,
        detail=wish.detail or _detail(draws, kind),
        ink=(wish.ink or draws.choice(INKS)) if kind in SHAPES else "",
        large=wish.large,
        shift=(draws.integer(-reach, reach + 1), 0 if kind == TILE else draws.integer(-reach, reach + 1)),
        radius=radius,
    )


def _spot(draws: Draws, wish: Wish, kind: str, free: set[int], *, held: bool) -> tuple[int, str] | None:
    """A free cell and a colour whose combination is held out or not, as wanted."""
    cells = sorted(free if wish.cells is None else free & set(wish.cells))
    if wish.large:
        blocks = [cells_at(place) for place in range(len(PLACES))]
        cells = [block[0] for block in blocks if free >= set(block) and block[0] in cells]
    colours = wish.colours if wish.colour is None else (wish.colour,)
    for cell in draws.shuffled(cells):
        fitting = [colour for colour in colours if held_out(kind, colour, place_of(cell)) == held]
        if fitting:
            return cell, draws.choice(fitting)
    return None


def _detail(draws: Draws, kind: str) -> str:
    """What a free object carries; a tile has a number or a letter, each as often."""
    if kind == TILE:
        return draws.choice(NUMBERS if draws.integer(0, 2) else LETTERS)
    return draws.choice(details_of(kind))


def _ground(draws: Draws, hard: bool, fixed: dict[str, object]) -> Ground:
    """The ground, with contrasts by the level."""
    drawn: dict[str, object] = {
        "mood": draws.choice(MOODS),
        "texture": draws.choice(TEXTURES),
        "light": draws.choice(SIDES),
        "mood_contrast": draws.integer(12, 20) if hard else draws.integer(36, 52),
        "texture_contrast": draws.integer(8, 14) if hard else draws.integer(24, 40),
        "light_contrast": draws.integer(10, 18) if hard else draws.integer(30, 50),
        "clutter": draws.integer(16, 33) if hard else draws.integer(0, 13),
        "grain": 24 if hard else 12,
    }
    return Ground(**{**drawn, **fixed})  # type: ignore[arg-type]
