"""Bitmap digits, five pixels wide and seven high, carried here so that pictures need no font of the machine."""

from __future__ import annotations

import numpy as np

_ROWS = (
    "01110 00100 01110 11111 00010 11111 00110 11111 01110 01110",
    "10001 01100 10001 00010 00110 10000 01000 00001 10001 10001",
    "10011 00100 00001 00100 01010 11110 10000 00010 10001 10001",
    "10101 00100 00010 00010 10010 00001 11110 00100 01110 01111",
    "11001 00100 00100 00001 11111 00001 10001 01000 10001 00001",
    "10001 00100 01000 10001 00010 10001 10001 01000 10001 00010",
    "01110 01110 11111 01110 00010 01110 01110 01000 01110 01100",
)

DIGITS = np.array([[[int(bit) for bit in row.split()[digit]] for row in _ROWS] for digit in range(10)], dtype=bool)
"""`(10, 7, 5)` boolean, true where ink is."""


def digit_mask(digit: int, scale: int) -> np.ndarray:
    """The ink of a digit, `(7 * scale, 5 * scale)` boolean."""
    return np.kron(DIGITS[digit], np.ones((scale, scale), dtype=bool))
