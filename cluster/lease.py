"""A claim on a piece of work that ends when its holder falls silent, kept in one small file.

A lease saves work; it proves nothing. Two holders at once (one was stopped for longer than the others' patience, say)
cost time only, since results are committed with create-if-absent. No clocks are compared: who wants a lease watches
its file, and takes it over when the file has not changed for so long by the watcher's own clock. Each holder has a
number, higher than those of all before it, which is written down with what it does. A file that is damaged is the lease
of somebody unknown: it is taken over like any other, once it has not changed for so long, and made whole by that.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from cluster.conditional import create_if_absent, read_versioned, replace_if_match
from cluster.storage import exists

_Clock = Callable[[], float]
_UNKNOWN = ""
"""Whoever holds a lease whose file is damaged."""
_NUMBER = re.compile(rb'"fence"\s*:\s*(\d{1,18})\b')


class Lease:
    """One lease.

    Args:
        uri: its file.
        holder: a name that nobody else has.
        patience_s: seconds of silence after which it is taken over.
        clock: seconds that only go forward.
    """

    def __init__(self, uri: str, holder: str, patience_s: float, clock: _Clock = time.monotonic) -> None:
        self._uri, self._holder, self._patience_s, self._clock = uri, holder, patience_s, clock
        self._seen, self._since = "", clock()
        self._state: dict[str, Any] = {}
        self._version = ""
        self.fence = 0
        """Number of the present or last holding; 0 before the first."""
        self.other: str | None = None
        """Who held it when it could not be taken; empty where its file is damaged and does not say."""
        self.lively = False
        """Whether the other has given a sign of life between two tries."""

    def take(self, gone: Callable[[str], bool] = lambda _: False) -> bool:
        """Try once; whether it is held now.

        Args:
            gone: whether a holder is known to live no more, and so needs no patience.

        Raises:
            StorageError: if its file cannot be read or written.
        """
        fresh = self._claim(1)
        if not exists(self._uri) and create_if_absent(self._uri, _packed(fresh)):
            return self._read_back(fresh)
        data, version = read_versioned(self._uri)
        state = _unpacked(data)
        if version != self._seen:
            self.lively = self._seen != "" and state["holder"] == self.other
            self._seen, self._since = version, self._clock()
        self.other = state["holder"]
        silent = self._clock() - self._since >= self._patience_s
        if self.other is not None and not silent and not gone(self.other):
            return False
        return self._write(self._claim(state["fence"] + 1), version)

    def renew(self) -> bool:
        """Give a sign of life; False if somebody else has taken the lease over."""
        return self._write({**self._state, "beat": self._state["beat"] + 1}, self._version)

    def release(self) -> None:
        """Let others have it at once; nothing happens if it is lost already."""
        self._write({**self._state, "holder": None}, self._version)

    def _claim(self, fence: int) -> dict[str, Any]:
        return {"fence": fence, "holder": self._holder, "beat": 0}

    def _write(self, state: dict[str, Any], version: str) -> bool:
        new = replace_if_match(self._uri, _packed(state), version)
        if new is None:  # outrun, or it was our own and the answer got lost
            return self._read_back(state)
        self._state, self._version, self.fence = state, new, state["fence"]
        return True

    def _read_back(self, state: dict[str, Any]) -> bool:
        try:
            data, version = read_versioned(self._uri)
        except FileNotFoundError:
            return False
        if _unpacked(data) != state:
            return False
        self._state, self._version, self.fence = state, version, state["fence"]
        return True


def _packed(state: dict[str, Any]) -> bytes:
    return json.dumps(state, sort_keys=True).encode()


def _unpacked(data: bytes) -> dict[str, Any]:
    """What a file says; a damaged one says that somebody unknown holds the lease, under the number that is legible."""
    state: Any = None
    with suppress(ValueError):
        state = json.loads(data)
    if (
        isinstance(state, dict)
        and isinstance(state.get("fence"), int)
        and isinstance(state.get("holder", 0), str | None)
    ):
        return state
    number = _NUMBER.search(data)
    return {"fence": int(number[1]) if number else 0, "holder": _UNKNOWN, "beat": 0}
