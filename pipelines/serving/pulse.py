"""Whether an engine is well: what became of its last jobs, and when it last gave a sign of life."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_MOST_FAILURES = 3


class Pulse:
    """Written by the engine's thread, read by any.

    Args:
        stall_timeout_s: seconds of work without a sign of life after which the engine counts as stuck.
        clock: seconds from any beginning.
    """

    def __init__(self, stall_timeout_s: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self._stall_timeout_s, self._clock = stall_timeout_s, clock
        self._failures = 0
        self._sign_at: float | None = None  # None while nothing is asked of the engine

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The time in which the engine is asked for answers; what ends outside says nothing about it."""
        self._sign_at = self._clock()
        try:
            yield
        finally:
            self._sign_at = None

    def beat(self) -> None:
        """Note a sign of life, such as a piece of text."""
        if self._sign_at is not None:
            self._sign_at = self._clock()

    def ended(self, fate: str) -> None:
        """Note what became of a job, in the words of `Counts`."""
        if self._sign_at is None:
            return
        self.beat()
        if fate == "failed":
            self._failures += 1
        elif fate != "refused":  # a prompt that was refused has not met the model
            self._failures = 0

    @property
    def ailment(self) -> str | None:
        """Why the engine should be replaced; None while it is well."""
        if self._failures > _MOST_FAILURES:
            return f"The model failed on {self._failures} requests in a row; the reasons are in the log."
        sign_at = self._sign_at
        silent_s = 0.0 if sign_at is None else self._clock() - sign_at
        if silent_s > self._stall_timeout_s:
            return f"The model gave no sign for {silent_s:.0f} s, but stall_timeout_s is {self._stall_timeout_s:g}."
        return None
