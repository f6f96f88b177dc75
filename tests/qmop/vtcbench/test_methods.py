from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from qmop.vtcbench.methods import holm, method_accuracy, method_difference
from qmop.vtcbench.statistics import mcnemar

ITEMS = 10_000


def runs(seed: int, level: float, count: int, spread: float = 0.01, items: int = ITEMS) -> NDArray[np.float64]:
    """Runs of a method: a true accuracy, a deviation for each run, and items of different difficulty."""
    rng = np.random.default_rng(seed)
    hardness = np.random.default_rng(99).normal(0, 0.15, items)
    share = np.clip(level + spread * rng.normal(size=(count, 1)) + hardness, 0, 1)
    return (rng.random((count, items)) < share).astype(float)


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_difference_of_three_points_is_found(seed: int) -> None:
    found = method_difference(runs(10 + 2 * seed, 0.70, 6), runs(11 + 2 * seed, 0.73, 6))
    assert found.estimate.value == pytest.approx(0.03, abs=0.012)
    assert found.p_value < 0.03
    assert found.estimate.low > 0
    assert found.runs == (6, 6)


def test_two_checkpoints_three_points_apart_are_told_apart_by_mcnemar() -> None:
    assert mcnemar(runs(1, 0.70, 1, 0.0)[0], runs(2, 0.73, 1, 0.0)[0]) < 0.001


@pytest.mark.parametrize(("count", "spread"), [(6, 0.0), (6, 0.01), (6, 0.05), (3, 0.01), (3, 0.05), (2, 0.05)])
def test_of_two_hundred_comparisons_of_nothing_at_most_about_one_in_twenty_is_found(count: int, spread: float) -> None:
    found = [
        method_difference(runs(2 * seed, 0.7, count, spread), runs(2 * seed + 1, 0.7, count, spread), seed, 500).p_value
        for seed in range(200)
    ]
    # ten are expected at most; more than eighteen come once in a hundred times
    assert sum(p <= 0.05 for p in found) <= 18
    assert np.mean(found) == pytest.approx(0.55, abs=0.1)


def test_of_two_hundred_pairs_of_equal_checkpoints_about_one_in_twenty_is_told_apart() -> None:
    found = [mcnemar(runs(2 * seed, 0.7, 1, 0.0)[0], runs(2 * seed + 1, 0.7, 1, 0.0)[0]) for seed in range(200)]
    assert 3 <= sum(p <= 0.05 for p in found) <= 18


@pytest.mark.parametrize(("count", "least"), [(6, 0.9), (3, 0.88), (2, 0.85)])
def test_intervals_hold_the_true_accuracy(count: int, least: float) -> None:
    def holds(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        share = np.clip(0.7 + 0.05 * rng.normal(size=(count, 1)), 0, 1)
        found = method_accuracy(rng.random((count, 1000)) < share, seed, 500)
        return found.low <= 0.7 <= found.high

    assert least <= np.mean([holds(seed) for seed in range(300)]) <= 0.99


def test_spread_between_runs_widens_the_interval_where_items_alone_would_not() -> None:
    calm, wild = method_accuracy(runs(4, 0.7, 6, 0.0)), method_accuracy(runs(4, 0.7, 6, 0.05))
    assert calm.high - calm.low == pytest.approx(0.0091, abs=0.0005)
    assert wild.high - wild.low > 5 * (calm.high - calm.low)
    assert calm.n == ITEMS


def test_the_spread_of_few_runs_is_not_understated() -> None:
    """Runs with a standard deviation of 0.02: Student's t gives their mean so wide an interval."""
    values = 0.7 + 0.02 * np.array([-1, 0, 1])
    found = method_accuracy(np.repeat(values[:, None], 50, axis=1))
    wide = float(stats.t.ppf(0.975, 2)) * 0.02 / 3**0.5
    assert (found.low, found.high) == (pytest.approx(0.7 - wide, abs=0.006), pytest.approx(0.7 + wide, abs=0.006))


def test_an_interval_ends_where_accuracies_do() -> None:
    found = method_accuracy(np.repeat([[0.6], [0.8]], 50, axis=1))
    assert (found.low, found.high) == (0, 1)


def test_a_p_value_as_small_as_it_can_be_is_known_as_such() -> None:
    assert (one := method_difference(runs(1, 0.5, 6), runs(2, 0.8, 6))).p_value == one.least_p == 2 / 10_001


def test_equal_seeds_give_equal_figures() -> None:
    first, second = runs(5, 0.6, 3, items=500), runs(6, 0.65, 2, items=500)
    assert method_difference(first, second, 4) == method_difference(first, second, 4)
    assert method_difference(first, second, 4) != method_difference(first, second, 5)


def test_the_other_way_round_the_difference_changes_its_sign() -> None:
    first, second = runs(5, 0.6, 6), runs(6, 0.65, 6)
    there, back = method_difference(first, second), method_difference(second, first)
    assert there.estimate.value == -back.estimate.value
    assert there.p_value < 0.05 > back.p_value


def test_holm_is_the_step_down_method() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2, 0.01]) == pytest.approx(list(multipletests([0.2, 0.01], method="holm")[1]))
    assert holm([]) == []


@pytest.mark.parametrize("scores", [np.zeros(4), np.zeros((0, 4)), np.zeros((3, 0))])
def test_something_else_than_runs_by_items_is_refused(scores: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match=r"scores have shape .*, expected runs by items"):
        method_accuracy(scores)


def test_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="needs the same items, got 4 and 5"):
        method_difference(np.zeros((2, 4)), np.zeros((2, 5)))
