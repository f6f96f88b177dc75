"""A scene: what stands in a rendered picture, as plain data from which questions and captions are asked.

A picture is a lattice of 6 x 6 cells; its nine named places are blocks of 2 x 2 cells. An object fills one cell, a
large one a whole place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qmop.vtcbench.words import COLOURS, KINDS, PLACES

IMAGE_SIZE = 96
LATTICE = 6
CELLS = LATTICE * LATTICE
CELL_SIZE = IMAGE_SIZE // LATTICE
_BLOCK = LATTICE // 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One object of a scene."""

    kind: str
    colour: str
    cell: int
    """The cell that it fills; the upper left one of the four of a large object."""
    detail: str
    """What it carries: a mark, a number, a letter or a feeling."""
    ink: str = ""
    """Colour of a mark."""
    large: bool = False
    shift: tuple[int, int] = (0, 0)
    """(x, y) in pixels off the middle."""
    radius: int = 7
    """Half the object's height in pixels."""

    @property
    def place(self) -> int:
        """Index of the named place where it stands."""
        return place_of(self.cell)

    @property
    def cells(self) -> tuple[int, ...]:
        """Every cell that it covers."""
        return cells_at(self.place) if self.large else (self.cell,)

    @property
    def centre(self) -> tuple[int, int]:
        """(x, y) in pixels."""
        row, column = divmod(self.cell, LATTICE)
        half = CELL_SIZE if self.large else CELL_SIZE // 2
        return column * CELL_SIZE + half + self.shift[0], row * CELL_SIZE + half + self.shift[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """What is behind the objects; contrasts are in grey levels of 256."""

    mood: str
    texture: str
    light: str
    """The side from which the light comes."""
    mood_contrast: int
    """How far the mood moves the ground from mid-grey."""
    texture_contrast: int
    """Between the two tones of the texture."""
    light_contrast: int
    """Between the lit and the unlit side."""
    clutter: int
    """Specks that are no objects."""
    grain: int
    """Of the noise over everything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Objects over a ground; `things` are ordered by place, then by cell."""

    things: tuple[Thing, ...]
    ground: Ground
    glyph_scale: int = 2
    """Pixels per dot of a number or a letter, five dots wide."""
    mark_size: int = 7
    """Pixels across a mark."""
    face_contrast: int = 200
    """Grey levels between a face and its features."""

    def having(self, *, colour: str | None = None, kind: str | None = None) -> list[Thing]:
        """The objects of the given colour and kind (either may be left open)."""
        return [t for t in self.things if colour in (None, t.colour) and kind in (None, t.kind)]

    def count(self, *, colour: str | None = None, kind: str | None = None) -> int:
        """How many objects have the given colour and kind."""
        return len(self.having(colour=colour, kind=kind))

    def only(self, *, colour: str | None = None, kind: str | None = None) -> Thing | None:
        """The one object of the given colour and kind, if there is exactly one."""
        found = self.having(colour=colour, kind=kind)
        return found[0] if len(found) == 1 else None

    @property
    def largest(self) -> Thing | None:
        """The one object drawn large, if there is one."""
        return next((t for t in self.things if t.large), None)


def place_of(cell: int) -> int:
    """Index of the place that a cell belongs to."""
    row, column = divmod(cell, LATTICE)
    return row // _BLOCK * 3 + column // _BLOCK


def cells_at(place: int) -> tuple[int, ...]:
    """The four cells of a place."""
    row, column = divmod(place, 3)
    first = row * _BLOCK * LATTICE + column * _BLOCK
    return first, first + 1, first + LATTICE, first + LATTICE + 1


def on_side(cell: int, side: str) -> bool:
    """Whether a cell lies in the half of the picture towards a side."""
    row, column = divmod(cell, LATTICE)
    half = LATTICE // 2
    return {"left": column < half, "right": column >= half, "top": row < half, "bottom": row >= half}[side]


def held_out(kind: str, colour: str, place: int) -> bool:
    """Whether a combination of kind, colour and place is kept from training: one sixth of them all.

    Two of the three leave the third nearly open: every kind has in every place one colour that is held out, and every
    colour has in every place one or two kinds.
    """
    return (KINDS.index(kind) + COLOURS.index(colour) + place) % len(COLOURS) == 0


def caption(scene: Scene) -> str:
    """A dense caption: ground, then every object with place, colour, kind and what it carries.

    Stating every object with its place is what teaches binding; short answers alone do not.
    """
    ground = scene.ground
    parts = [f"a {ground.mood} {ground.texture} picture with light from the {ground.light} ."]
    for place, name in enumerate(PLACES):
        things = ", ".join(describe(thing) for thing in scene.things if thing.place == place)
        if things:
            parts.append(f"{name} : {things} .".replace(",", " ,"))
    return " ".join(parts)


def describe(thing: Thing) -> str:
    """An object in words, such as `large red circle white dot`."""
    size = "large " if thing.large else ""
    ink = f"{thing.ink} " if thing.ink else ""
    return f"{size}{thing.colour} {thing.kind} {ink}{thing.detail}"


def sorted_things(things: Iterator[Thing]) -> tuple[Thing, ...]:
    """In reading order: by place, then by cell."""
    return tuple(sorted(things, key=lambda thing: (thing.place, thing.cell)))
