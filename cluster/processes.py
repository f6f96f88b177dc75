"""Ending exactly the processes that were started, and not being ended half-way through it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import psutil

_LEAST_PATIENCE_S = 1.0
_Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the ``with`` blocks as Ctrl-C does, unless the program has a handler of its own.

    Outside the main thread, where no handler can be set, this does nothing.
    """
    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_DFL:
        set_handler(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        set_handler(signal.SIGTERM, before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put SIGINT and SIGTERM off until the block is through; a clean-up must not be cleaned up after."""
    late: list[int] = []
    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    for which in before:
        set_handler(which, lambda number, _frame: late.append(number))
    try:
        yield
    finally:
        for which, handler in before.items():
            set_handler(which, handler)
        for number in late[:1]:
            signal.raise_signal(number)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put back what handled SIGINT and SIGTERM, for calls into libraries that leave handlers of their own behind."""
    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in before.items():
            set_handler(which, handler)


def set_handler(which: signal.Signals, handler: _Handler) -> None:
    """Install a signal handler where that can be done: in the main thread, and if it was set from Python."""
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(which, handler)


def descendants(marker: str) -> list[psutil.Process]:
    """Our direct children whose command line holds ``marker``, and everything below them."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        try:
            if marker in " ".join(child.cmdline()):
                found += [child, *child.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return found


def end(processes: Iterable[psutil.Process], patience_s: float) -> None:
    """End ``processes`` and wait until they are gone: first by themselves, then asked, then killed."""
    _, alive = psutil.wait_procs(list(processes), timeout=patience_s)
    patience_s = max(patience_s, _LEAST_PATIENCE_S)
    for step in (psutil.Process.terminate, psutil.Process.kill):
        for process in alive:
            try:
                step(process)
            except psutil.NoSuchProcess:
                continue
        _, alive = psutil.wait_procs(alive, timeout=patience_s)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
