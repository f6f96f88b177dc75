"""Nothing of the source's order is left in an epoch, nothing of an epoch in the next."""

import numpy as np
import pytest

from pipelines.corpus import order as corpus_order
from pipelines.corpus.order import Order
from pipelines.corpus.quality import rank_correlation, shuffle_quality


@pytest.mark.parametrize("seed", range(5))
def test_correlations_are_near_zero(seed: int) -> None:
    found = shuffle_quality(Order(sizes=[100] * 200, seed=seed, window_shards=4), epochs=4)
    assert found.windows == 200
    assert found.within < 0.06  # 400 samples a window: 0.04 is the mean size by chance
    assert found.shards < 0.15  # 200 shards: 0.056
    assert found.across < 0.2
    assert found.worst < 4.5


def test_correlation_is_spearmans() -> None:
    one, swapped = np.array([1, 2, 3, 4]), np.array([10, 20, 400, 30])
    assert rank_correlation(one, swapped) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert rank_correlation(one, 2.0 * one) == pytest.approx(1.0)
    assert rank_correlation(one, -one) == pytest.approx(-1.0)
    assert rank_correlation(one[:1], swapped[:1]) == 0.0


@pytest.mark.parametrize("broken", ["window", "shards"])
def test_an_order_that_does_not_shuffle_is_seen(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    real = corpus_order.permutation

    def lazy(count: int, *words: object) -> np.ndarray:
        return np.arange(count) if words[0] == broken else real(count, *words)

    monkeypatch.setattr(corpus_order, "permutation", lazy)
    found = shuffle_quality(Order(sizes=[100] * 40, seed=sum(broken.encode()), window_shards=4))
    assert (found.within > 0.5) == (broken == "window")
    assert (found.shards == pytest.approx(1.0)) == (broken == "shards")
    assert (found.across > 0.5) == (broken == "shards")
    assert found.worst > 5


def test_the_same_epoch_twice_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = corpus_order.permutation
    monkeypatch.setattr(corpus_order, "permutation", lambda count, what, seed, _: real(count, what, seed, 0))
    found = shuffle_quality(Order(sizes=[50] * 40, seed=54_321, window_shards=4))
    assert found.across == pytest.approx(1.0)
    assert found.worst > 6


def test_one_epoch_has_no_neighbour() -> None:
    with pytest.raises(ValueError, match="epochs is 1"):
        shuffle_quality(Order(sizes=[3], seed=0, window_shards=1), epochs=1)
    assert shuffle_quality(Order(sizes=[1], seed=0, window_shards=1)).worst == 0.0
