"""Kill -9 of a training worker at a chosen moment of a run, seen from outside by the files that the run writes."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.storage import exists, join, list_files, read_bytes
from pipelines.training.states import CARD

_POLL_S, _LONGEST_S = 0.02, 600.0
Moment = Callable[[], object]


def workers() -> list[psutil.Process]:
    """The training workers below this process, in the order of their start."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline() and process.cmdline()[0].startswith("ray::") and "TrainWorker" in process.cmdline()[0]:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda process: process.create_time())


def visible(run: Path | str, name: str) -> Moment:
    """As soon as a state is visible."""
    return lambda: exists(join(run, "states", name, CARD))


def under_way(run: Path | str, name: str) -> Moment:
    """As soon as a state has files but no card yet."""
    folder = join(run, "states", name)
    return lambda: exists(folder) and bool(list_files(folder, recursive=True)) and not exists(join(folder, CARD))


@contextmanager
def meanwhile(*acts: tuple[Moment, Callable[[], None]]) -> Iterator[None]:
    """Do things one after the other, each as soon as its moment has come, beside what runs in the block."""
    done = threading.Event()

    def watch() -> None:
        deadline, left = time.monotonic() + _LONGEST_S, list(acts)
        while left and not done.wait(_POLL_S) and time.monotonic() < deadline:
            moment, act = left[0]
            if moment():
                act()
                del left[0]

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


@contextmanager
def killed(*moments: Moment, which: int = -1) -> Iterator[list[int]]:
    """Kill one worker at each moment of what runs in the block, one after the other; the killed processes' ids."""
    victims: list[int] = []

    def kill() -> None:
        victim = workers()[which]
        victim.send_signal(signal.SIGKILL)
        victims.append(victim.pid)

    def ready(moment: Moment) -> Moment:
        return lambda: moment() and bool(workers())

    with meanwhile(*((ready(moment), kill) for moment in moments)):
        yield victims


def notes(run: Path | str, kind: str) -> list[dict[str, Any]]:
    """What a run told of one kind, in order."""
    lines = read_bytes(join(run, "metrics.jsonl")).splitlines()
    return [note for note in map(json.loads, lines) if note["kind"] == kind]


def curve(run: Path | str, stage: str = "tune", tolerance: float = 0.0) -> dict[int, tuple[float, ...]]:
    """Loss, rates, temperature and noise by step; a step that was taken again must have gone as the first time.

    Sums are taken in another order where the number of processes has changed: give a tolerance then.
    """
    found: dict[int, tuple[float, ...]] = {}
    for note in notes(run, "step"):
        if note["stage"] != stage:
            continue
        router = (note["temperature"], note["noise"]) if "temperature" in note else ()
        values = (note["loss"], *note["rates"].values(), *router)
        before = found.setdefault(note["step"], values)
        assert values == pytest.approx(before, rel=tolerance, abs=0.0), f"step {note['step']} went differently again"
    return found
