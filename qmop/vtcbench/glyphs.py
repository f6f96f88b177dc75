"""Bitmap digits, letters, marks and faces, carried here so that pictures need no font of the machine."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from qmop.vtcbench.words import FEELINGS, LETTERS, MARKS, NUMBERS

_DIGIT_ROWS = (
    "01110 00100 01110 11111 00010 11111 00110 11111 01110 01110",
    "10001 01100 10001 00010 00110 10000 01000 00001 10001 10001",
    "10011 00100 00001 00100 01010 11110 10000 00010 10001 10001",
    "10101 00100 00010 00010 10010 00001 11110 00100 01110 01111",
    "11001 00100 00100 00001 11111 00001 10001 01000 10001 00001",
    "10001 00100 01000 10001 00010 10001 10001 01000 10001 00010",
    "01110 01110 11111 01110 00010 01110 01110 01000 01110 01100",
)
_LETTER_ROWS = (
    "01110 11111 10001 10001 10000 11111 10001 10001",
    "10001 10000 10001 10010 10000 00100 10001 10001",
    "10000 10000 10001 10100 10000 00100 10001 01010",
    "10000 11110 11111 11000 10000 00100 10001 00100",
    "10000 10000 10001 10100 10000 00100 01010 01010",
    "10001 10000 10001 10010 10000 00100 01010 10001",
    "01110 11111 10001 10001 11111 00100 00100 10001",
)
_MOUTHS = {
    "happy": ("1000001", "1100011", "0111110", "0001000"),
    "sad": ("0001000", "0111110", "1100011", "1000001"),
    "calm": ("0000000", "1111111", "1111111", "0000000"),
    "amazed": ("0011100", "0110110", "0110110", "0011100"),
}
_EYES = ("0110110", "0110110", "0000000")


def _bits(rows: tuple[str, ...]) -> np.ndarray:
    return np.array([[bit == "1" for bit in row] for row in rows])


def _table(rows: tuple[str, ...], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    columns = zip(*(row.split() for row in rows), strict=True)
    return {name: _bits(column) for name, column in zip(names, columns, strict=True)}


GLYPHS = {**_table(_DIGIT_ROWS, NUMBERS), **_table(_LETTER_ROWS, LETTERS)}
"""Number or letter to its dots, `(7, 5)` boolean, true where ink is."""

FACES = {feeling: _bits(_EYES + _MOUTHS[feeling]) for feeling in FEELINGS}
"""Feeling to the features of a face, `(7, 7)` boolean."""


@lru_cache(maxsize=64)
def glyph_mask(name: str, scale: int) -> np.ndarray:
    """The ink of a number or a letter, `(7 * scale, 5 * scale)` boolean."""
    return np.kron(GLYPHS[name], np.ones((scale, scale), dtype=bool))


@lru_cache(maxsize=64)
def mark_mask(name: str, size: int) -> np.ndarray:
    """The ink of a mark, `(size, size)` boolean.

    Raises:
        ValueError: if the name is no mark's, or the size is even, so that nothing could be centred.
    """
    if name not in MARKS or size % 2 == 0:
        raise ValueError(f"a mark {name!r} of {size} pixels cannot be drawn: choose {', '.join(MARKS)} and an odd size")
    half = size // 2
    down, across = np.mgrid[-half : half + 1, -half : half + 1]
    bar = size // 6
    if name == "dot":
        return across**2 + down**2 <= half**2 + 1
    if name == "box":
        return np.maximum(abs(across), abs(down)) == half
    line = abs(down) <= bar
    return line | (abs(across) <= bar) if name == "plus" else line
