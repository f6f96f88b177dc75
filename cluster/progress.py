"""Progress that a person can watch and a log can keep: one line per event, and a sign of life when nothing happens."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console

_HEARTBEAT_S = 10.0
_UPDATE_S = 2.0


class Progress:
    """Lines on standard error, stamped with the seconds since the start.

    Args:
        stream: where to write; standard error when absent, so that standard output stays a result.
        heartbeat_s: the longest silence inside a stage, in seconds.
    """

    def __init__(self, stream: TextIO | None = None, heartbeat_s: float = _HEARTBEAT_S) -> None:
        """Start counting the seconds now."""
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._heartbeat_s = heartbeat_s
        self._started = self._spoke = time.monotonic()
        self._updated: dict[str, float] = {}
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Print one line."""
        with self._lock:
            self._spoke = time.monotonic()
            self._console.print(f"[dim]{self._spoke - self._started:7.1f}s[/dim]", end=" ")
            self._console.print(text, markup=False)

    def update(self, title: str, done: int, total: int, note: str = "") -> None:
        """Print how far a countable piece of work is, at most every two seconds and always at its end."""
        now = time.monotonic()
        if done < total and now - self._updated.get(title, 0.0) < _UPDATE_S:
            return
        self._updated[title] = now
        share = f" ({100 * done // total} %)" if total else ""
        self.say(f"{title}: {done}/{total}{share}{'  ' + note if note else ''}")

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Announce a stage, keep saying that it goes on, and say how long it took or that it failed."""
        self.say(f"{title} ...")
        started, done = time.monotonic(), threading.Event()
        beat = threading.Thread(target=self._beat, args=(title, started, done), daemon=True)
        beat.start()
        try:
            yield
        except BaseException:
            self.say(f"{title}: failed after {time.monotonic() - started:.1f} s")
            raise
        else:
            self.say(f"{title}: done in {time.monotonic() - started:.1f} s")
        finally:
            done.set()
            beat.join()

    def _beat(self, title: str, started: float, done: threading.Event) -> None:
        while not done.wait(1.0):
            if time.monotonic() - self._spoke >= self._heartbeat_s:
                self.say(f"{title}: still going after {time.monotonic() - started:.0f} s")
