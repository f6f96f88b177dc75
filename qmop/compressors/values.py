"""Checks of the values that users give to fields: whole numbers, finite numbers and divisors."""

from __future__ import annotations

import math
from numbers import Real
from operator import index


def whole(field: str, value: object, why: str, *, least: int = 1, most: int | None = None) -> int:
    """A field that counts something: 2.0, True and "2" are none.

    Args:
        field: its name in the message.
        value: what was given.
        why: what the number is for, after "but" in the message.
        least: the smallest that will do.
        most: the largest.

    Returns:
        The value as an `int`.

    Raises:
        ValueError: if it is not whole or out of bounds.
    """
    found = _index(value)
    if found is not None and least <= found and (most is None or found <= most):
        return found
    span = f"{least} or more" if most is None else f"{least} to {most}"
    kind = "a whole number, " if found is None else ""
    raise ValueError(f"{field} is {value!r}, but {why}: choose {kind}{span}")


def _index(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return index(value)  # type: ignore[arg-type] # that it may not be one is the question
    except TypeError:
        return None


def is_whole(value: object) -> bool:
    """Whether it counts: 2 and numpy's 2 do, 2.0, True and "2" do not."""
    return _index(value) is not None


def finite(value: object) -> bool:
    """Whether it is a number: not an infinite one, not NaN, and neither a word nor a switch."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def divisor(field: str, value: object, of: str, total: int) -> int:
    """A field that cuts another into equal parts.

    Args:
        field: its name in the message.
        value: what was given.
        of: the name of what is cut.
        total: its size.

    Returns:
        The value as an `int`.

    Raises:
        ValueError: if it is not whole or does not divide.
    """
    found = _index(value)
    if found is None or found < 1 or total % found:
        raise ValueError(f"{field} is {value!r}, which does not divide {of} {total}: choose a divisor")
    return found
