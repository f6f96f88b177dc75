"""What distributed workers tell the driver while they work: a mailbox that the driver empties."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_POLL_S, _PATIENCE_S, _LAST_PATIENCE_S = 0.5, 10.0, 60.0
Mark = tuple[str, int]
"""A life of the board, and how many notes of it somebody has."""
_NOTHING: Mark = ("", 0)


@ray.remote(num_cpus=0, max_restarts=-1)
class Board:
    """Holds notes until the reader says that it has them."""

    def __init__(self) -> None:
        self._notes: list[dict[str, Any]] = []
        self._forgotten, self._life = 0, uuid.uuid4().hex

    def post(self, note: dict[str, Any]) -> None:
        """Leave a note."""
        self._notes.append(note)

    def take(self, heard: Mark = _NOTHING) -> tuple[Mark, list[dict[str, Any]]]:
        """All notes behind a mark, and the mark behind them; what stands before the given one is forgotten.

        An answer that does not arrive costs nothing: the next call has the same mark, and gets the same notes. After a
        restart the board counts anew, and marks of its life before mean nothing.
        """
        life, count = heard
        if life == self._life and count > self._forgotten:
            del self._notes[: count - self._forgotten]
            self._forgotten = count
        return (self._life, self._forgotten + len(self._notes)), list(self._notes)


def open_board() -> Any:
    """A board on the driver's own machine, so that notes are not lost with another."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


@contextmanager
def listening(board: Any, hear: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call `hear` with every note while the block runs, in a thread of its own, and once more at its end.

    An error of `hear` ends the listening and is raised at the end of a block that has none of its own.
    """
    done, heard, failed = threading.Event(), [_NOTHING], list[Exception]()

    def empty(patience_s: float) -> None:
        try:
            mark, notes = ray.get(board.take.remote(heard[0]), timeout=patience_s)
        except RayError:  # a board that is gone has nothing to say, and must not hide why
            return
        for note in notes:
            hear(note)
        heard[0] = mark

    def attempt(patience_s: float) -> None:
        try:
            empty(patience_s)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody sees it in the thread
            failed.append(error)

    def listen() -> None:
        while not failed and not done.wait(_POLL_S):
            attempt(_PATIENCE_S)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if not failed:
            attempt(_LAST_PATIENCE_S)
    if failed:
        raise failed[0]
