"""The account that a run keeps of itself: `metrics.jsonl`, one line per note, there while the run goes on.

On a local disk a note is appended as it comes. Nothing can be appended to an object in S3, so there the whole account
is written anew every minute, with every state and export, and at the end: what a run resumes from is then covered.
A run that goes back to an earlier step takes back what it had noted of the steps after it, so no step stands there
twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, get_args

from cluster.storage import append, exists, is_s3, read_bytes, write_atomic
from pipelines.training.recipe import StageName

_EVERY_S = 60.0
_MILESTONES = ("state", "export")
_OF_STEPS = ("step", "export", "state", "skipped", "left_out")
"""Kinds that come again with the step that they belong to. Verdicts do not: an export is judged once."""
_STAGES = get_args(StageName)
_Place = tuple[int, int]


class Account:
    """The lines of a run, in memory and in their file.

    Args:
        uri: of the file, local or in S3; what an earlier part of the run has written there is kept.
        say: takes one warning for each time that the store begins to fail.
        clock: seconds that pass.

    Raises:
        StorageError: if what is there cannot be read.
    """

    def __init__(self, uri: str, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._uri, self._say, self._clock = uri, say, clock
        before = read_bytes(uri) if exists(uri) else b""
        self._lines = [line for line in before.splitlines(keepends=True) if _is_whole(line)]
        self._places = [_place_of(json.loads(line)) for line in self._lines]
        self._appends = not is_s3(uri)
        # A last line that a killed process has left unfinished must go before anything comes after it.
        self._behind = not self._appends or b"".join(self._lines) != before
        self._written, self._warned = clock(), False

    def add(self, note: dict[str, Any]) -> None:
        """Keep a note; a store that fails is tried again with a later one."""
        line = f"{json.dumps(note)}\n".encode()
        self._lines.append(line)
        self._places.append(_place_of(note))
        if not self._behind:
            self._tried(lambda: append(self._uri, line))
        elif self._appends or note["kind"] in _MILESTONES or self._clock() - self._written >= _EVERY_S:
            self._tried(self._write_anew)

    def go_back(self, stage: str, step: int) -> None:
        """Take back what was noted of steps after this one, since they are taken again."""
        last = (_STAGES.index(stage), step)
        kept = [at for at, place in enumerate(self._places) if place is None or place <= last]
        if len(kept) < len(self._lines):
            self._lines = [self._lines[at] for at in kept]
            self._places = [self._places[at] for at in kept]
            self._tried(self._write_anew)

    def close(self) -> None:
        """Write what is not written yet.

        Raises:
            StorageError: if that fails.
        """
        if self._behind or not exists(self._uri):
            self._write_anew()

    def has_steps(self) -> bool:
        """Whether any step is noted."""
        return any(json.loads(line)["kind"] == "step" for line in self._lines)

    def _write_anew(self) -> None:
        write_atomic(self._uri, b"".join(self._lines))
        self._behind, self._written = not self._appends, self._clock()

    def _tried(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:  # no trouble of a store may end a training
            self._behind, self._written = True, self._clock()
            if not self._warned:
                self._say(f"WARNING: notes were not written, the next one tries again, training goes on: {error}")
            self._warned = True
        else:
            self._warned = False


def _is_whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _place_of(note: dict[str, Any]) -> _Place | None:
    """Stage and step that a note belongs to, if it comes again with them."""
    if note.get("kind") not in _OF_STEPS:
        return None
    stage, step = (note["stage"], note["step"]) if "stage" in note else note["name"].rpartition("-")[::2]
    return (_STAGES.index(stage), int(step))
