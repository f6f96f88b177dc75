"""The greatest memory of a process and all below it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


def memory(process: psutil.Process) -> int:
    """Bytes of a process and all below it; memory that they share is counted once (proportional set size)."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


class Peak:
    """What `watched` has seen so far, in bytes."""

    def __init__(self) -> None:
        self.bytes = 0


@contextmanager
def watched(pid: int, every_s: float = 1.0) -> Iterator[Peak]:
    """Look at a process every so often until the block is through or the process has ended."""
    peak, through = Peak(), threading.Event()

    def watch() -> None:
        while not through.wait(every_s):
            try:
                peak.bytes = max(peak.bytes, memory(psutil.Process(pid)))
            except psutil.NoSuchProcess:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        through.set()
        watcher.join()
