from __future__ import annotations

from math import comb

import numpy as np
import pytest
from scipy import stats

from qmop.vtcbench.statistics import accuracy, compare, macro_accuracy, mcnemar, micro_average, resampled_means


def test_bootstrap_interval_agrees_with_scipy_on_soft_scores() -> None:
    scores = np.random.default_rng(0).choice([0.0, 0.3, 0.6, 1.0], size=400, p=[0.3, 0.1, 0.1, 0.5])

    ours = accuracy(scores, seed=1)
    theirs = stats.bootstrap(
        (scores,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval

    assert ours.value == pytest.approx(scores.mean())
    assert ours.n == 400
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_resampled_means_have_the_spread_of_theory() -> None:
    rows = (np.arange(1000) < 300).astype(float)[:, None]

    means = resampled_means(rows, seed=0, resamples=20_000)[:, 0]

    assert means.mean() == pytest.approx(0.3, abs=0.001)
    assert means.std() == pytest.approx(np.sqrt(0.3 * 0.7 / 1000), rel=0.03)


def test_resampling_keeps_the_columns_of_an_item_together() -> None:
    first = np.random.default_rng(3).integers(0, 2, 500).astype(float)

    means = resampled_means(np.column_stack([first, 1 - first]), seed=0)

    assert np.allclose(means.sum(axis=1), 1.0)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    draws = np.random.default_rng(4).random((300, 150)) < 0.7
    found = [accuracy(draw, seed=0, resamples=2000) for draw in draws]

    covered = np.mean([estimate.low <= 0.7 <= estimate.high for estimate in found])

    assert 0.91 <= covered <= 0.98


def test_equal_seeds_give_equal_intervals() -> None:
    scores = [0.0, 1.0, 1.0, 0.0, 1.0] * 20

    assert accuracy(scores, seed=5) == accuracy(scores, seed=5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_right_or_all_wrong_is_no_certainty(value: float) -> None:
    estimate = accuracy([value] * 20)
    wilson = stats.binomtest(int(20 * value), 20).proportion_ci(method="wilson")

    assert (estimate.low, estimate.high) == pytest.approx((wilson.low, wilson.high))
    assert estimate.high - estimate.low > 0.1


def test_macro_average_weighs_groups_equally_and_resamples_inside_them() -> None:
    groups = {"GU": [1.0] * 50 + [0.0] * 50, "LD": [1.0] * 4 + [0.0] * 6}

    estimate = macro_accuracy(groups)

    assert estimate.value == pytest.approx(0.45)
    assert estimate.n == 110
    spread = np.sqrt(0.5 * 0.5 / 100 + 0.4 * 0.6 / 10) / 2
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * spread, rel=0.12)


def test_groups_of_a_macro_average_are_resampled_independently() -> None:
    scores = [1.0] * 50 + [0.0] * 50

    one, four = macro_accuracy({"a": scores}), macro_accuracy(dict.fromkeys("abcd", scores))

    assert four.high - four.low == pytest.approx((one.high - one.low) / 2, rel=0.1)


def test_exact_mcnemar_is_the_binomial_tail() -> None:
    base = np.array([True] * 10 + [False] * 2 + [True] * 30 + [False] * 8)
    other = np.array([False] * 10 + [True] * 2 + [True] * 30 + [False] * 8)

    assert mcnemar(base, other) == pytest.approx(2 * sum(comb(12, k) for k in range(3)) / 2**12)
    assert mcnemar(base, other) == pytest.approx(0.0385742, abs=1e-6)
    assert mcnemar(base, base) == 1.0


def test_loss_gain_and_retention_are_the_shares_that_they_say() -> None:
    base = [1.0] * 8 + [0.0] * 4
    other = [1.0] * 5 + [0.0] * 3 + [1.0] * 1 + [0.0] * 3

    comparison = compare(base, other)

    assert comparison.loss is not None
    assert comparison.gain is not None
    assert comparison.retention is not None
    assert comparison.loss.value == pytest.approx(3 / 8)
    assert comparison.gain.value == pytest.approx(1 / 4)
    assert (comparison.loss.n, comparison.gain.n) == (8, 4)
    assert comparison.retention.value == pytest.approx(6 / 8)
    assert comparison.difference.value == pytest.approx(-2 / 12)
    assert comparison.p_value == pytest.approx(0.625)
    assert comparison.within_noise


def test_information_loss_has_the_interval_of_its_own_denominator() -> None:
    base = [1.0] * 300 + [0.0] * 700
    other = [1.0] * 240 + [0.0] * 760

    loss = compare(base, other).loss

    assert loss is not None
    assert loss.high - loss.low == pytest.approx(2 * 1.96 * np.sqrt(0.2 * 0.8 / 300), rel=0.06)


def test_figures_without_a_denominator_are_absent() -> None:
    nothing_right = compare([0.0, 0.0], [1.0, 0.0])
    all_right = compare([1.0, 1.0], [1.0, 1.0])

    assert nothing_right.loss is None
    assert nothing_right.retention is None
    assert all_right.gain is None
    assert all_right.loss is not None
    assert all_right.loss.value == 0.0
    assert all_right.loss.high > 0.5


def test_a_planted_difference_of_three_points_is_found_on_ten_thousand_items() -> None:
    draw = np.random.default_rng(6)
    base = draw.random(10_000) < 0.70
    other = np.where(draw.random(10_000) < 0.25, draw.random(10_000) < 0.58, base)

    comparison = compare(base, other)

    assert comparison.difference.value == pytest.approx(-0.03, abs=0.01)
    assert comparison.p_value < 1e-4
    assert comparison.difference.high < 0


def test_null_comparisons_are_called_significant_about_one_time_in_twenty() -> None:
    draw = np.random.default_rng(7)
    found = []
    for _ in range(1000):
        skill = draw.random(2000)
        found.append(mcnemar(draw.random(2000) < skill, draw.random(2000) < skill) < 0.05)

    assert 0.03 <= np.mean(found) <= 0.065


_PAPER_COUNTS = (278, 230, 255, 300, 292)
_PAPER_ROWS = [
    ((56.1, 47.4, 65.9, 72.0, 60.9), 61.0),
    ((54.7, 46.1, 64.3, 74.7, 54.9), 59.5),
    ((53.6, 47.0, 61.2, 70.0, 55.3), 57.9),
    ((53.2, 47.8, 59.6, 70.3, 55.2), 57.7),
    ((55.8, 47.8, 64.7, 74.0, 57.5), 60.5),
    ((56.8, 48.3, 63.9, 74.3, 56.4), 60.5),
    ((54.7, 43.5, 59.6, 70.7, 58.3), 58.0),
    ((57.2, 48.6, 64.7, 75.0, 60.6), 61.8),
]


@pytest.mark.parametrize(("accuracies", "printed"), _PAPER_ROWS)
def test_the_average_of_the_paper_s_third_table_is_the_micro_average(
    accuracies: tuple[float, ...], printed: float
) -> None:
    assert micro_average(accuracies, _PAPER_COUNTS) == pytest.approx(printed, abs=0.1)


def test_empty_and_unequal_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        accuracy([])
    with pytest.raises(ValueError, match="got 2 and 1 scores"):
        compare([1.0, 0.0], [1.0])
    with pytest.raises(ValueError, match="at least one group"):
        macro_accuracy({})
    with pytest.raises(ValueError, match="do not make a micro average"):
        micro_average([1.0], [0])


def test_a_macro_average_of_all_right_or_all_wrong_is_no_certainty() -> None:
    even = macro_accuracy({"a": [1.0] * 20, "b": [1.0] * 20})
    assert even == accuracy([1.0] * 40)
    uneven = macro_accuracy({"a": [0.0] * 10, "b": [0.0] * 190})
    assert uneven.n == 200
    assert uneven.high == accuracy([0.0] * 38).high  # 4 / (1/10 + 1/190) = 38
    assert macro_accuracy({"a": [1.0], "b": [0.0, 1.0]}).high > 0.5


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="score 1 is no number"):
        accuracy([1.0, float("nan")])
