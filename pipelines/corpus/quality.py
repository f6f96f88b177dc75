"""How well an order shuffles: rank correlations, which are near zero where nothing of the old order is left."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import numpy as np
from scipy import stats

from pipelines.corpus.order import Order, Window


@dataclass(frozen=True, kw_only=True)
class ShuffleQuality:
    """Spearman's rank correlations of an order.

    Under a perfect shuffle of n things such a correlation has mean 0 and standard deviation 1 / sqrt(n - 1), where
    the things are samples inside a window and shards across epochs. `worst` gives the largest of all in units of
    that; for a few hundred correlations 3 to 4 are usual.

    Attributes:
        within: mean size of the correlation between source and delivery inside a window.
        shards: of the correlation between source and delivery of the epoch's shards; 0 with a single shard.
        across: between a sample's places in neighbouring epochs.
        worst: the largest of all these, in standard deviations.
        windows: how many windows were looked at.
    """

    within: float
    shards: float
    across: float
    worst: float
    windows: int


def shuffle_quality(order: Order, epochs: int = 2) -> ShuffleQuality:
    """Look at all windows of some epochs, and at every two epochs that follow each other.

    Args:
        order: of one corpus.
        epochs: how many, from the first on; at least 2.

    Raises:
        ValueError: for fewer than two epochs.
    """
    if epochs < 2:  # noqa: PLR2004 - neighbours
        raise ValueError(f"epochs is {epochs}: correlation across epochs needs at least 2")
    within = [_within(order, window) for epoch in range(epochs) for window in order.windows(epoch)]
    shards = [_shards(order, epoch) for epoch in range(epochs)]
    places = [_places(order, epoch) for epoch in range(epochs)]
    across = [rank_correlation(one, other) for one, other in pairwise(places)]
    sizes = [window.count for epoch in range(epochs) for window in order.windows(epoch)]
    sizes += [len(order.sizes)] * (len(shards) + len(across))  # the samples of a shard move together
    everything = [*within, *shards, *across]
    return ShuffleQuality(
        within=_mean_size(within),
        shards=_mean_size(shards),
        across=_mean_size(across),
        worst=max(abs(value) * sqrt(max(1, size - 1)) for value, size in zip(everything, sizes, strict=True)),
        windows=len(within),
    )


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation of two orders without ties; 0 for fewer than two things."""
    if len(one) < 2:  # noqa: PLR2004
        return 0.0
    return float(stats.spearmanr(one, other).statistic)


def _mean_size(values: list[float]) -> float:
    return float(np.mean(np.abs(values)))


def _within(order: Order, window: Window) -> float:
    """Between the place in the window's shards, read one after the other, and the place of delivery."""
    before = {shard: number for number, shard in enumerate(window.shards)}
    drawn = order.samples(window)
    source = np.array([before[shard] * max(order.sizes) + index for shard, index in drawn])
    return rank_correlation(source, np.arange(len(drawn)))


def _shards(order: Order, epoch: int) -> float:
    shards = np.array([shard for window in order.windows(epoch) for shard in window.shards])
    return rank_correlation(shards, np.arange(len(shards)))


def _places(order: Order, epoch: int) -> np.ndarray:
    """Where each sample of the corpus, in the order of the source, is delivered inside an epoch."""
    shards, indices = order.places(epoch * order.epoch_samples, (epoch + 1) * order.epoch_samples)
    return np.lexsort((indices, shards))
