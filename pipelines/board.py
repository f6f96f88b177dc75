"""What distributed workers tell the driver while they work: a mailbox that the driver empties."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_POLL_S, _PATIENCE_S = 0.5, 10.0


@ray.remote(num_cpus=0, max_restarts=-1)
class Board:
    """Holds notes until they are taken."""

    def __init__(self) -> None:
        self._notes: list[dict[str, Any]] = []

    def post(self, note: dict[str, Any]) -> None:
        """Leave a note."""
        self._notes.append(note)

    def take(self) -> list[dict[str, Any]]:
        """All notes since the last call."""
        notes, self._notes = self._notes, []
        return notes


def open_board() -> Any:
    """A board on the driver's own machine, so that notes are not lost with another."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


@contextmanager
def listening(board: Any, hear: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call `hear` with every note while the block runs, in a thread of its own, and once more at its end."""
    done = threading.Event()

    def empty() -> None:
        with suppress(RayError):  # a board that is gone has nothing to say, and must not hide why
            for note in ray.get(board.take.remote(), timeout=_PATIENCE_S):
                hear(note)

    def listen() -> None:
        while not done.wait(_POLL_S):
            empty()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        empty()
