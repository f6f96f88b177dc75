"""One or several prepared corpora as one endless order, and what a reading task has to fetch for a stretch of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipelines.corpus.manifest import Manifest, load_manifest
from pipelines.corpus.mixing import Mix, whole_weights
from pipelines.corpus.order import Order


@dataclass(frozen=True)
class Places:
    """Where the samples of a stretch of positions lie; three arrays of equal length.

    Attributes:
        corpus: number of the corpus.
        shard: number of the shard in that corpus.
        index: number of the sample in that shard.
    """

    corpus: np.ndarray
    shard: np.ndarray
    index: np.ndarray

    def shards(self) -> list[tuple[int, int]]:
        """The different `(corpus, shard)` pairs."""
        pairs = np.unique(np.stack([self.corpus, self.shard]), axis=1)
        return [(int(corpus), int(shard)) for corpus, shard in pairs.T]


@dataclass(frozen=True)
class Blend:
    """Corpora and their weights under one seed.

    A *span* is what one reading task delivers: the positions from one shuffle window of the leading corpus (the one
    with the largest weight) to the next. Of the other corpora a task fetches every window that its span touches.

    Args:
        manifests: of the corpora.
        weights: whole numbers, one per corpus.
        seed: of all orders.
        window_shards: shards that are shuffled together.
    """

    manifests: tuple[Manifest, ...]
    weights: tuple[int, ...]
    seed: int
    window_shards: int

    @classmethod
    def load(cls, corpora: Mapping[str, float], seed: int, window_shards: int) -> Blend:
        """Read the manifests of corpora by folder.

        Raises:
            FileNotFoundError: if a corpus has no manifest.
            ValueError: if a manifest is damaged or a weight means nothing.
        """
        weights = whole_weights(list(corpora.values()))
        return cls(tuple(load_manifest(uri) for uri in corpora), weights, seed, window_shards)

    @cached_property
    def orders(self) -> tuple[Order, ...]:
        """The order of each corpus; the first one's is that of the corpus alone, under the same seed."""
        return tuple(
            Order(manifest.sizes, self.seed + number, self.window_shards)
            for number, manifest in enumerate(self.manifests)
        )

    @cached_property
    def mix(self) -> Mix:
        """Which corpus stands where."""
        return Mix(self.weights, self.seed)

    @property
    def epoch(self) -> int:
        """Positions until the first corpus comes a second time."""
        return self.mix.once([order.epoch_samples for order in self.orders])

    @property
    def _lead(self) -> int:
        return int(np.argmax(self.weights))

    def span(self, number: int) -> tuple[int, int]:
        """First position of a span and the one after its last."""
        order = self.orders[self._lead]
        low = self.mix.position(self._lead, order.window(number).start) if number else 0
        return low, self.mix.position(self._lead, order.window(number + 1).start)

    def span_at(self, position: int) -> int:
        """The span that a position falls into."""
        place = max(0, self.mix.taken(self._lead, position + 1) - 1)
        return self.orders[self._lead].window_at(place).number

    def places(self, start: int, stop: int) -> Places:
        """Where the samples from one position to another lie."""
        corpora, inside = self.mix.places(start, stop)
        shards, indices = np.empty_like(inside), np.empty_like(inside)
        for corpus, order in enumerate(self.orders):
            mine = corpora == corpus
            if mine.any():
                first = int(inside[mine][0])
                shards[mine], indices[mine] = order.places(first, first + int(mine.sum()))
        return Places(corpora, shards, indices)
