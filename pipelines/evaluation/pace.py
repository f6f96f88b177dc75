"""How fast work goes while there is some, and how long what is left will take."""

from __future__ import annotations

import time
from collections.abc import Callable

_MINUTE, _HOUR = 60, 3600


class Pace:
    """Items per second of the time in which something runs; waiting for work is not slowness.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._spent_s, self._items = 0.0, 0

    def running(self, running: bool) -> None:
        """Whether anything runs from now on."""
        now = self._clock()
        if self._since is not None:
            self._spent_s += now - self._since
        self._since = now if running else None

    def did(self, items: int) -> None:
        """So many items are done."""
        self._items += items

    def left(self, items: int) -> str:
        """How long so many items will take, for people; empty if there are none, or nothing was done yet."""
        if not items or not self._items:
            return ""
        spent = self._spent_s + (0.0 if self._since is None else self._clock() - self._since)
        return f"about {spoken(spent / self._items * items)} left"


def spoken(seconds: float) -> str:
    """A stretch of time as people say it."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE:.0f} min" if seconds < _HOUR else f"{seconds / _HOUR:.1f} h"
