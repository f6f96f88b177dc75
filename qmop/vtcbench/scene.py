"""A scene: what stands in a rendered picture, as plain data from which questions and captions are asked."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qmop.vtcbench.draws import Draws

IMAGE_SIZE = 96
CELLS = 9
CELL_SIZE = 32

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
MOODS = ("warm", "cold", "dark", "bright")
TEXTURES = ("plain", "striped", "checked", "dotted")
PLACES = (
    "top left", "top", "top right",
    "left", "middle", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIGN = "sign"

SMALL_RADII = (7, 8, 9)
LARGE_RADIUS = 15


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object of a scene; a `sign` carries a digit, the other shapes carry none."""

    shape: str
    colour: str
    cell: int
    centre: tuple[int, int]
    """(x, y) in pixels."""
    radius: int
    digit: int | None = None

    @property
    def place(self) -> str:
        """Where the object stands, in words."""
        return PLACES[self.cell]

    @property
    def name(self) -> str:
        """Colour and shape, such as `red circle`."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Objects over a background; `things` are ordered by cell."""

    things: tuple[Thing, ...]
    mood: str
    texture: str

    def count(self, *, colour: str | None = None, shape: str | None = None) -> int:
        """How many objects have the given colour and shape (either may be left open)."""
        return sum(colour in (None, t.colour) and shape in (None, t.shape) for t in self.things)

    @property
    def largest(self) -> Thing | None:
        """The one object drawn large, if there is one."""
        return next((t for t in self.things if t.radius == LARGE_RADIUS), None)


def place_thing(draws: Draws, cell: int, shape: str, colour: str, *, large: bool = False) -> Thing:
    """An object at a jittered position inside its cell that never leaves the cell."""
    sign = shape == SIGN
    radius = LARGE_RADIUS if large else 11 if sign else draws.choice(SMALL_RADII)
    slack = CELL_SIZE // 2 - radius - 1
    column, row = cell % 3, cell // 3
    centre = (
        column * CELL_SIZE + CELL_SIZE // 2 + draws.integer(-slack, slack + 1),
        row * CELL_SIZE + CELL_SIZE // 2 + draws.integer(-slack, slack + 1),
    )
    digit = draws.integer(0, 10) if sign else None
    return Thing(shape=shape, colour=colour, cell=cell, centre=centre, radius=radius, digit=digit)


def compose(draws: Draws, wanted: list[tuple[str, str]], *, large: int | None = None, **background: str) -> Scene:
    """A scene of the wanted (shape, colour) pairs in random cells.

    Args:
        draws: the stream to draw from.
        wanted: shape and colour of each object, at most nine.
        large: index into `wanted` of the object to draw large; a scene never has two large objects.
        background: `mood` and `texture`, drawn when absent.
    """
    cells = draws.sample(range(CELLS), len(wanted))
    things = [
        place_thing(draws, cell, shape, colour, large=index == large)
        for index, (cell, (shape, colour)) in enumerate(zip(cells, wanted, strict=True))
    ]
    return Scene(
        things=tuple(sorted(things, key=lambda thing: thing.cell)),
        mood=background.get("mood") or draws.choice(MOODS),
        texture=background.get("texture") or draws.choice(TEXTURES),
    )


def with_digit(thing: Thing, digit: int) -> Thing:
    """The same sign with another digit on it."""
    return replace(thing, digit=digit)


def random_thing(draws: Draws) -> tuple[str, str]:
    """Shape and colour of a free object; one in four is a sign."""
    return (SIGN if draws.integer(0, 4) == 0 else draws.choice(SHAPES)), draws.choice(COLOURS)


def random_scene(draws: Draws) -> Scene:
    """A free scene of two to six objects, one of them large in half of the scenes."""
    wanted = [random_thing(draws) for _ in range(draws.integer(2, 7))]
    candidates = [index for index, (shape, _) in enumerate(wanted) if shape != SIGN]
    large = draws.choice(candidates) if candidates and draws.integer(0, 2) else None
    return compose(draws, wanted, large=large)


def caption(scene: Scene) -> str:
    """A dense caption: background, then every object with colour, shape, place and digit.

    Stating every object with its place is what teaches binding; short answers alone do not.
    """
    parts = [f"a {scene.mood} {scene.texture} picture ."]
    for thing in scene.things:
        size = "large " if thing.radius == LARGE_RADIUS else ""
        digit = f" with digit {NUMBERS[thing.digit]}" if thing.digit is not None else ""
        parts.append(f"{thing.place} : {size}{thing.name}{digit} .")
    return " ".join(parts)
