"""The words of the rendered world: what its objects, marks, grounds and places are called."""

from __future__ import annotations

SHAPES = ("circle", "square", "triangle", "cross", "diamond")
TILE, FACE = "tile", "face"
KINDS = (*SHAPES, TILE, FACE)
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = ("c", "e", "h", "k", "l", "t", "v", "x")
MARKS = ("dot", "line", "plus", "box")
INKS = ("white", "black", "pink", "cyan")
FEELINGS = ("happy", "sad", "calm", "amazed")
MOODS = ("warm", "cold", "dark", "bright")
TEXTURES = ("plain", "striped", "checked", "dotted")
SIDES = ("left", "right", "top", "bottom")
PLACES = (
    "top left", "top", "top right",
    "left", "middle", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip

DETAILS = (*NUMBERS, *LETTERS, *MARKS, *FEELINGS)
"""Whatever an object may carry: a number or a letter on a tile, a mark on a shape, a feeling on a face."""


def details_of(kind: str) -> tuple[str, ...]:
    """What an object of a kind may carry."""
    if kind == TILE:
        return NUMBERS + LETTERS
    return FEELINGS if kind == FACE else MARKS
