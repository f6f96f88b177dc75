"""Several corpora in one order, in exact proportions.

Positions are cut into blocks as long as the weights' sum; each block holds every corpus exactly as often as its weight
says, in an order drawn by (seed, block). So any prefix of whole blocks has the exact proportions, and which sample of
which corpus stands at a position follows from arithmetic alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import lcm

import numpy as np

from pipelines.corpus.order import permutation

_FINEST = 1000


def whole_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest whole numbers in the proportion of the weights, to three decimals of each one's own value.

    Raises:
        ValueError: if there are none, or one is not above zero.
    """
    if not weights:
        raise ValueError("corpora is empty, name at least one corpus")
    parts = [Fraction(str(weight)).limit_denominator(_FINEST) for weight in weights]
    for weight, part in zip(weights, parts, strict=True):
        if part <= 0:
            raise ValueError(f"a corpus has the weight {weight}, but it must be above 0 (and at least 0.001)")
    scale = lcm(*(part.denominator for part in parts))
    numbers = [int(part * scale) for part in parts]
    common = int(np.gcd.reduce(numbers))
    return tuple(number // common for number in numbers)


@dataclass(frozen=True)
class Mix:
    """Which corpus every position comes from.

    Args:
        weights: whole numbers, one per corpus; see `whole_weights`.
        seed: of the order inside blocks.
    """

    weights: tuple[int, ...]
    seed: int

    @property
    def block(self) -> int:
        """Positions per block."""
        return sum(self.weights)

    @cached_property
    def _members(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.weights)), self.weights)

    def _drawn(self, number: int) -> np.ndarray:
        """The corpora of one block, in order, `(block,)`."""
        if len(self.weights) == 1:
            return self._members
        return self._members[permutation(self.block, "mix", self.seed, number)]

    def taken(self, corpus: int, position: int) -> int:
        """Samples of a corpus before a position."""
        number, inside = divmod(position, self.block)
        return number * self.weights[corpus] + int((self._drawn(number)[:inside] == corpus).sum())

    def position(self, corpus: int, place: int) -> int:
        """Where the sample stands that is number `place` of a corpus, counted from 0."""
        number, inside = divmod(place, self.weights[corpus])
        return number * self.block + int(np.flatnonzero(self._drawn(number) == corpus)[inside])

    def places(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Corpus and number inside the corpus of every position from `start` to `stop`, both `(stop - start,)`."""
        blocks = range(start // self.block, -(-stop // self.block))
        corpora = np.concatenate([self._drawn(number) for number in blocks]) if blocks else np.empty(0, dtype=np.int64)
        inside = np.empty_like(corpora)
        for corpus, weight in enumerate(self.weights):
            mine = corpora == corpus
            inside[mine] = blocks.start * weight + np.arange(mine.sum())
        span = slice(start - blocks.start * self.block, stop - blocks.start * self.block)
        return corpora[span], inside[span]

    def once(self, sizes: Sequence[int]) -> int:
        """Positions until the first corpus would come a second time: one epoch of a mixture.

        Args:
            sizes: samples of each corpus.
        """
        return min(self.position(corpus, size) for corpus, size in enumerate(sizes))
