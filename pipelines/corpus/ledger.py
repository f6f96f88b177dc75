"""What was trained on: each rank's account of the samples of every optimiser step.

One file per rank, attempt and stretch of steps, written before a checkpoint is committed, so that every step that a
checkpoint counts is on record. An *attempt* is one start of the worker group. A step that was taken again after a
restart counts in the latest attempt alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from cluster import storage
from pipelines.corpus.feed import CorpusFeed

FOLDER = "ledger"
FEED = "feed.json"
_EVERY = 200


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one rank took in one step.

    Attributes:
        step: optimiser step, counted from 0 over the whole run.
        positions: global positions, in order; those of a rank's slots.
        keys: of the samples at these positions.
    """

    step: int
    positions: list[int]
    keys: list[str]


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """One file of a ledger."""

    attempt: int
    start: int
    """First step of the attempt."""
    rank: int
    world: int
    entries: list[Entry]

    def to_json(self) -> bytes:
        """The file's bytes."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Stretch:
        """Read a file back.

        Raises:
            ValueError: if it is damaged.
        """
        try:
            fields = json.loads(data)
            entries = [Entry(**entry) for entry in fields.pop("entries")]
            return cls(entries=entries, **fields)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"ledger: {name} is damaged ({error}), the run's account is incomplete") from error


class Taken(Protocol):
    """Samples of one slot, as the feed or the collator hands them out."""

    @property
    def positions(self) -> Sequence[int]:
        """Global positions."""

    @property
    def keys(self) -> Sequence[str]:
        """Keys of the samples at these positions."""


@dataclass(kw_only=True)
class Ledger:
    """One rank's account in one attempt.

    Args:
        folder: of the ledger, local or remote.
        attempt: number of this start of the worker group.
        start: first step of this attempt.
        rank: of this process.
        world: number of processes.
    """

    folder: str
    attempt: int
    start: int
    rank: int
    world: int
    _entries: list[Entry] = field(default_factory=list)

    def note(self, step: int, batches: Sequence[Taken | None]) -> None:
        """Record what this rank trained on in a step that counted; None stands for a slot without samples."""
        taken = [batch for batch in batches if batch is not None]
        positions = [position for batch in taken for position in batch.positions]
        self._entries.append(Entry(step=step, positions=positions, keys=[key for batch in taken for key in batch.keys]))
        if len(self._entries) >= _EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet; call it before a checkpoint is committed, and at the end."""
        if not self._entries:
            return
        first = self._entries[0].step
        name = f"{self.attempt:04d}-{self.rank:05d}-{first:09d}.json"
        stretch = Stretch(
            attempt=self.attempt, start=self.start, rank=self.rank, world=self.world, entries=self._entries
        )
        storage.write_atomic(storage.join(self.folder, name), stretch.to_json())
        self._entries = []


def open_ledger(folder: str, feed: CorpusFeed) -> int:
    """Make a ledger ready for an attempt; by one process, before the others begin.

    Returns:
        The number of the attempt.

    Raises:
        ValueError: if the folder holds the ledger of another feed.
    """
    mine = description(feed)
    place = storage.join(folder, FEED)
    if not storage.exists(place):
        storage.write_atomic(place, json.dumps(mine, indent=1).encode())
        return 0
    theirs = json.loads(storage.read_bytes(place))
    if changed := [name for name in mine if mine[name] != theirs.get(name)]:
        raise ValueError(f"ledger {folder} belongs to another run ({', '.join(changed)} differ), choose another folder")
    return 1 + max((stretch.attempt for stretch in stretches(folder)), default=-1)


def description(feed: CorpusFeed) -> dict[str, Any]:
    """What fixes every sample's place, and the digests of the corpora."""
    assert not isinstance(feed.corpora, str)
    digests = [manifest.digest for manifest in feed.blend().manifests]
    return {
        "corpora": feed.corpora,
        "digests": digests,
        "seed": feed.seed,
        "micro_batch": feed.micro_batch,
        "slots": feed.slots,
        "window_shards": feed.window_shards,
    }


def stretches(folder: str) -> Iterator[Stretch]:
    """All files of a ledger, in the order of attempt, rank and step."""
    for uri in storage.list_files(folder, ".json"):
        if not uri.endswith(FEED):
            yield Stretch.from_json(storage.read_bytes(uri), uri)
