"""The order of an epoch: a function of seed, epoch and shard sizes alone.

Shards are permuted, then cut into windows of several shards, then the samples of each window are shuffled together.
A *position* counts delivered samples from 0 over all epochs; everything else follows from it. Permutations come from
integer arithmetic of our own, so that no library's next version changes an order that a checkpoint relies on.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def permutation(count: int, *words: object) -> np.ndarray:
    """A permutation of `range(count)` that depends on the words alone, `(count,)` int64.

    Every number gets a 64-bit key (SplitMix64 from a hash of the words); the permutation sorts the keys.
    """
    text = ":".join(str(word) for word in words).encode()
    base = np.uint64(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))
    with np.errstate(over="ignore"):
        keys = base + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA)
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(_FIRST)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(_SECOND)
        keys ^= keys >> np.uint64(31)
    return np.argsort(keys, kind="stable")


@dataclass(frozen=True, kw_only=True)
class Window:
    """Neighbouring shards of an epoch's order that are shuffled together.

    Attributes:
        number: counted over all epochs.
        epoch: epoch that it belongs to.
        start: position of its first sample.
        count: its samples.
        shards: shard numbers of the manifest.
    """

    number: int
    epoch: int
    start: int
    count: int
    shards: tuple[int, ...]


@dataclass(frozen=True)
class Order:
    """The endless order of a corpus.

    Args:
        sizes: samples of each shard, as the manifest lists them.
        seed: seed of all epochs.
        window_shards: shards that are shuffled together.
    """

    sizes: Sequence[int]
    seed: int
    window_shards: int

    def __post_init__(self) -> None:
        """Refuse a corpus that has no order."""
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError("a corpus without samples has no order, prepare one with at least one sample per shard")
        if self.window_shards < 1:
            raise ValueError(f"window_shards is {self.window_shards}, it must be at least 1")

    @property
    def epoch_samples(self) -> int:
        """Samples of one epoch."""
        return sum(self.sizes)

    @property
    def epoch_windows(self) -> int:
        """Windows of one epoch."""
        return -(-len(self.sizes) // self.window_shards)

    def windows(self, epoch: int) -> list[Window]:
        """All windows of an epoch, in order."""
        return list(_windows(self, epoch))

    def _cut(self, epoch: int) -> list[Window]:
        shards = [int(shard) for shard in permutation(len(self.sizes), "shards", self.seed, epoch)]
        windows: list[Window] = []
        start = epoch * self.epoch_samples
        for first in range(0, len(shards), self.window_shards):
            members = tuple(shards[first : first + self.window_shards])
            count = sum(self.sizes[shard] for shard in members)
            number = epoch * self.epoch_windows + len(windows)
            windows.append(Window(number=number, epoch=epoch, start=start, count=count, shards=members))
            start += count
        return windows

    def window(self, number: int) -> Window:
        """A window by its number."""
        epoch, inside = divmod(number, self.epoch_windows)
        return self.windows(epoch)[inside]

    def window_at(self, position: int) -> Window:
        """The window that a position falls into."""
        windows = _windows(self, position // self.epoch_samples)
        return windows[bisect_right(windows, position, key=lambda window: window.start) - 1]

    def samples(self, window: Window) -> list[tuple[int, int]]:
        """`(shard, index inside the shard)` of every sample of a window, in the order of delivery."""
        shards, indices = self._drawn(window)
        return list(zip(shards.tolist(), indices.tolist(), strict=True))

    def _drawn(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Shards and indices of a window's samples in the order of delivery, both `(count,)`."""
        sizes = [self.sizes[shard] for shard in window.shards]
        shards = np.repeat(np.array(window.shards), sizes)
        indices = np.concatenate([np.arange(size) for size in sizes])
        chosen = permutation(window.count, "window", self.seed, window.number)
        return shards[chosen], indices[chosen]

    def places(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards and indices inside the shards of all samples from one position to another, both `(stop - start,)`."""
        shards, indices = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        while start < stop:
            window = self.window_at(start)
            span = slice(start - window.start, min(stop, window.start + window.count) - window.start)
            drawn = self._drawn(window)
            shards.append(drawn[0][span])
            indices.append(drawn[1][span])
            start = window.start + window.count
        return np.concatenate(shards), np.concatenate(indices)


@lru_cache(maxsize=4)
def _windows(order: Order, epoch: int) -> tuple[Window, ...]:
    return tuple(order._cut(epoch))  # noqa: SLF001 - the same class, with a memory that a frozen object cannot keep
