"""The leases that watching schedulers hold on pieces of work, kept alive together."""

from __future__ import annotations

import threading
import uuid
from contextlib import suppress
from types import TracebackType
from typing import Self

from cluster.lease import Lease
from cluster.storage import join

_FOLDER, _BEATS = "leases", 3.0


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
        """Give a claim back; while the storage is away, it runs out by itself."""
        with self._lock:
            if name in self._held:
                self._held.discard(name)
                with suppress(OSError):
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
