"""Random draws that are the same on every machine, Python and numpy version.

`numpy.random.Generator` may change how it turns bits into values between releases; the raw words of the
counter-based Philox generator may not. So each draw here is made from raw words by arithmetic of our own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_WORD = 1 << 64
_BUFFER = 64


class Draws:
    """A stream of draws addressed by `(seed, *path)`; equal addresses give equal streams.

    Args:
        seed: the run's seed, any non-negative integer.
        path: what the stream is for, such as `("train", 17)`; hashed, so streams never overlap by accident.

    Raises:
        ValueError: for a negative seed, or a path part with a slash, which could name another stream.
    """

    def __init__(self, seed: int, *path: int | str) -> None:
        if seed < 0 or any("/" in str(part) for part in path):
            raise ValueError(f"a stream of seed {seed} and path {path} is refused: no seed below 0, no slash in a path")
        address = "/".join([str(seed), *map(str, path)])
        key = np.frombuffer(hashlib.blake2b(address.encode(), digest_size=16).digest(), dtype="<u8")
        self._bits = np.random.Philox(key=key.astype(np.uint64))
        self._words: list[int] = []

    def word(self) -> int:
        """The next raw 64-bit word."""
        if not self._words:
            self._words = [int(word) for word in self._bits.random_raw(_BUFFER)][::-1]
        return self._words.pop()

    def integer(self, low: int, high: int) -> int:
        """A uniform integer in `[low, high)`, by rejection so that no value is favoured.

        Raises:
            ValueError: if the range is empty.
        """
        span = high - low
        if span <= 0:
            raise ValueError(f"cannot draw an integer from the empty range [{low}, {high})")
        limit = _WORD - _WORD % span
        while (word := self.word()) >= limit:
            pass
        return low + word % span

    def choice(self, options: Sequence[T]) -> T:
        """One of `options`, each equally likely."""
        return options[self.integer(0, len(options))]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different members of `options` in random order."""
        if count > len(options):
            raise ValueError(f"cannot draw {count} different members out of {len(options)}")
        pool = list(options)
        for place in range(count):
            other = self.integer(place, len(pool))
            pool[place], pool[other] = pool[other], pool[place]
        return pool[:count]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """All of `options` in random order."""
        return self.sample(options, len(options))

    def noise(self, height: int, width: int) -> np.ndarray:
        """An image of independent bytes, `(height, width)` uint8."""
        words = self._bits.random_raw(-(-height * width // 8))
        return words.astype("<u8").view(np.uint8)[: height * width].reshape(height, width)
