"""A claim on a piece of work that ends when its holder falls silent, kept in one small file.

A lease saves work; it proves nothing. Two holders at once (one was stopped for longer than the others' patience, say)
cost time only, since results are committed with create-if-absent. No clocks are compared: who wants a lease watches
its file, and takes it over when the file has not changed for so long by the watcher's own clock. Each holder has a
number, higher than those of all before it, which is written down with what it does.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from cluster.storage import create_if_absent, exists, join, read_versioned, replace_if_match

_FOLDER, _BEATS = "leases", 3.0
_Clock = Callable[[], float]


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

    def take(self) -> bool:
        """Try once; whether it is held now."""
        fresh = self._claim(1)
        if not exists(self._uri) and create_if_absent(self._uri, _packed(fresh)):
            return self._read_back(fresh)
        data, version = read_versioned(self._uri)
        state = json.loads(data)
        if version != self._seen:
            self._seen, self._since = version, self._clock()
        if state["holder"] is not None and self._clock() - self._since < self._patience_s:
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
        if json.loads(data) != state:
            return False
        self._state, self._version, self.fence = state, version, state["fence"]
        return True


class Claims:
    """The leases of one scheduler on a store, kept alive by a thread for as long as the context lasts.

    Args:
        store: results store.
        patience_s: as for a lease.
    """

    def __init__(self, store: str, patience_s: float) -> None:
        self._store, self._patience_s, self._holder = store, patience_s, uuid.uuid4().hex
        self._known: dict[str, Lease] = {}
        self._held: set[str] = set()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claims", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)

    def take(self, name: str) -> int | None:
        """Claim a piece of work; the number of the claim, or None if it is another's for now."""
        with self._lock:
            if name in self._held:
                return self._known[name].fence
            lease = self._known.setdefault(
                name, Lease(join(self._store, _FOLDER, f"{name}.json"), self._holder, self._patience_s)
            )
            if not lease.take():
                return None
            self._held.add(name)
            return lease.fence

    def holds(self, name: str) -> bool:
        """Whether a claim is ours, as far as we know."""
        with self._lock:
            return name in self._held

    def release(self, name: str) -> None:
        """Give a claim back."""
        with self._lock:
            if name in self._held:
                self._held.discard(name)
                self._known[name].release()

    def _beat(self) -> None:
        while not self._over.wait(self._patience_s / _BEATS):
            with self._lock:
                for name in list(self._held):
                    try:
                        if not self._known[name].renew():
                            self._held.discard(name)
                    except OSError:  # a storage that is away for a moment; the next beat tries again
                        continue


def _packed(state: dict[str, Any]) -> bytes:
    return json.dumps(state, sort_keys=True).encode()
