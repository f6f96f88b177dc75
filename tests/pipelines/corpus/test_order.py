"""The order: complete, reproducible for ever, and thoroughly mixed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.corpus.order import Order, permutation

SIZES = (5, 3, 7, 1, 4)


def test_permutations_are_known() -> None:
    assert permutation(10, "shards", 0, 0).tolist() == [4, 2, 5, 0, 3, 7, 8, 9, 6, 1]
    assert permutation(6, "window", 7, 3).tolist() == [2, 1, 3, 4, 0, 5]
    assert permutation(0, "x").tolist() == []


def test_permutations_are_fair() -> None:
    """Each of 8 numbers lands on each of 8 places 500 +- 5 standard deviations times in 4,000 draws."""
    counts = np.zeros((8, 8))
    for seed in range(4000):
        counts[np.arange(8), permutation(8, "fair", seed)] += 1
    spread = np.sqrt(4000 / 8 * 7 / 8)
    assert np.abs(counts - 500).max() < 5 * spread


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    window_shards=st.integers(1, 14),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
)
def test_an_epoch_holds_every_sample_once(sizes: list[int], window_shards: int, seed: int, epoch: int) -> None:
    order = Order(sizes, seed, window_shards)
    windows = order.windows(epoch)
    assert len(windows) == order.epoch_windows
    assert windows[0].start == epoch * sum(sizes)
    assert all(one.start + one.count == next_.start for one, next_ in pairwise(windows))
    delivered = [place for window in windows for place in order.samples(window)]
    assert sorted(delivered) == [(shard, index) for shard, size in enumerate(sizes) for index in range(size)]


def test_a_position_leads_to_its_window_and_sample() -> None:
    order = Order(SIZES, seed=4, window_shards=2)
    stream = [place for number in range(9) for place in order.samples(order.window(number))]
    assert len(stream) == 60
    for start, stop in [*pairwise(range(61)), (0, 60), (7, 43)]:
        shards, indices = order.places(start, stop)
        assert list(zip(shards.tolist(), indices.tolist(), strict=True)) == stream[start:stop]
    assert [order.window_at(position).number for position in (0, 19, 20, 59)] == [0, 2, 3, 8]


def test_seeds_and_epochs_differ() -> None:
    def first(seed: int, epoch: int) -> list[tuple[int, int]]:
        order = Order((50,) * 6, seed, 3)
        return order.samples(order.windows(epoch)[0])

    assert first(1, 0) == first(1, 0)
    assert len({tuple(first(seed, epoch)) for seed in (1, 2, 3) for epoch in (0, 1, 2)}) == 9


def test_neither_a_window_nor_an_epoch_remembers_the_source() -> None:
    """Rank correlations stay within 4 / sqrt(n)."""
    order = Order((250,) * 64, seed=11, window_shards=8)

    def ranks(epoch: int) -> np.ndarray:
        places = [place for window in order.windows(epoch) for place in order.samples(window)]
        return np.array([shard * 250 + index for shard, index in places])

    one, two = ranks(0), ranks(1)
    window = one[:2000]
    assert abs(np.corrcoef(np.argsort(np.argsort(window)), np.arange(2000))[0, 1]) < 4 / np.sqrt(2000)
    assert abs(np.corrcoef(np.argsort(one), np.argsort(two))[0, 1]) < 4 / np.sqrt(64)
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.25


def test_a_corpus_without_samples_has_no_order() -> None:
    with pytest.raises(ValueError, match="without samples"):
        Order((), 0, 1)
    with pytest.raises(ValueError, match="window_shards is 0"):
        Order((1,), 0, 0)
