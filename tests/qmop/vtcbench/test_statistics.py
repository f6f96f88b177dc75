from __future__ import annotations

from math import comb

import numpy as np
import pytest
from scipy import stats

from qmop.vtcbench.statistics import accuracy, compare, macro_accuracy, mcnemar, mean_retention, resampled_means


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


def test_empty_and_unequal_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        accuracy([])
    with pytest.raises(ValueError, match="got 2 and 1 scores"):
        compare([1.0, 0.0], [1.0])
    with pytest.raises(ValueError, match="at least one group"):
        macro_accuracy({})


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


_TABLE_1 = ("TextVQA", "POPE", "VQAv2", "MM-Vet", "GQA", "MME", "MMB", "Seed-I", "MMStar", "MMMU")
_VANILLA_7B = (58.2, 85.9, 78.5, 31.6, 62.0, 1511, 64.3, 66.1, 31.9, 34.6)
_VANILLA_13B = (63.8, 87.9, 80.0, 35.4, 63.3, 1531, 67.7, 68.2, 33.1, 36.1)
_ROWS_7B = [
    ((54.2, 87.0, 75.6, 29.1, 60.2, 1422, 64.5, 61.6, 31.7, 32.7), 96.14),
    ((57.1, 83.5, 76.2, 32.2, 58.0, 1440, 64.3, 62.3, 31.3, 34.8), 97.64),
    ((54.1, 85.9, 75.7, 28.2, 60.4, 1392, 63.3, 62.3, 31.1, 33.4), 95.48),
    ((52.6, 86.2, 76.8, 29.8, 61.4, 1445, 64.4, 62.0, 31.9, 34.8), 97.22),
    ((57.0, 87.0, 77.9, 33.0, 61.9, 1454, 65.0, 65.1, 32.6, 34.3), 100.05),
    ((56.4, 86.3, 77.3, 31.7, 61.5, 1435, 65.1, 63.9, 31.9, 33.9), 98.62),
    ((57.1, 87.7, 78.1, 33.3, 62.0, 1456, 64.8, 66.0, 33.1, 35.1), 100.73),
    ((52.2, 85.5, 73.2, 25.8, 58.7, 1383, 64.4, 59.3, 30.1, 34.6), 93.46),
    ((56.0, 80.4, 72.5, 28.7, 55.0, 1342, 61.6, 57.9, 31.8, 34.6), 93.37),
    ((51.3, 85.7, 73.7, 26.1, 59.1, 1415, 61.8, 60.0, 31.3, 34.1), 93.69),
    ((51.6, 83.6, 75.3, 28.9, 60.0, 1454, 63.5, 60.8, 30.9, 34.4), 95.41),
    ((55.6, 86.5, 77.2, 29.1, 61.1, 1440, 64.4, 63.0, 31.3, 33.8), 97.18),
    ((55.1, 86.8, 76.1, 30.1, 60.1, 1414, 66.2, 62.6, 31.5, 34.2), 97.38),
    ((56.0, 87.2, 76.4, 30.8, 60.2, 1455, 64.6, 63.6, 31.9, 34.6), 98.25),
]
_ROWS_13B = [
    ((57.0, 86.9, 76.9, 33.1, 61.2, 1483, 66.2, 64.0, 32.1, 34.4), 95.53),
    ((58.8, 86.1, 77.1, 33.6, 59.1, 1489, 66.4, 63.8, 32.3, 34.9), 95.79),
    ((53.9, 86.3, 74.8, 28.2, 60.4, 1391, 63.0, 61.0, 31.3, 35.4), 91.73),
    ((58.8, 87.4, 78.8, 34.5, 62.3, 1525, 67.4, 65.4, 33.9, 35.0), 98.06),
    ((58.4, 87.6, 78.4, 34.4, 62.0, 1533, 66.9, 65.3, 33.2, 35.6), 97.80),
    ((59.4, 88.2, 79.4, 34.7, 62.7, 1519, 67.4, 67.0, 33.7, 36.1), 98.86),
]
_TABLE_2 = ("TextVQA", "POPE", "VQAv2", "GQA", "MMB", "MMB-CN", "OCRBench")
_VANILLA_2 = (58.2, 85.9, 78.5, 62.0, 64.3, 58.3, 297)
_ROWS_2 = [
    ((52.5, 64.8, 67.1, 52.7, 61.2, 57.0, 291), 89.58),
    ((47.4, 82.8, 74.9, 58.7, 62.8, 54.7, 190), 89.06),
    ((54.3, 71.3, 70.6, 54.3, 59.6, 52.9, 253), 88.92),
    ((56.1, 83.6, 75.6, 57.6, 62.5, 53.7, 292), 95.79),
    ((56.1, 82.3, 75.1, 57.1, 63.2, 56.8, 290), 96.19),
    ((56.5, 82.6, 76.0, 58.2, 62.3, 55.8, 289), 96.26),
    ((57.4, 82.8, 76.7, 60.0, 63.6, 57.0, 296), 97.98),
    ((57.1, 87.7, 78.1, 62.0, 64.8, 57.0, 304), 100.08),
]
_PUBLISHED = [
    *((_TABLE_1, _VANILLA_7B, *row, 0.072) for row in _ROWS_7B),
    *((_TABLE_1, _VANILLA_13B, *row, 0.072) for row in _ROWS_13B),
    *((_TABLE_2, _VANILLA_2, *row, 0.01) for row in _ROWS_2),
]


@pytest.mark.parametrize(("names", "vanilla", "scores", "printed", "rounding"), _PUBLISHED)
def test_the_averages_of_the_paper_s_first_and_second_table_are_mean_retentions(
    names: tuple[str, ...],
    vanilla: tuple[float, ...],
    scores: tuple[float, ...],
    printed: float,
    rounding: float,
) -> None:
    found = mean_retention(dict(zip(names, scores, strict=True)), dict(zip(names, vanilla, strict=True)))

    assert found == pytest.approx(printed, abs=rounding)


def test_retention_needs_the_same_benchmarks() -> None:
    with pytest.raises(ValueError, match="give the same ones"):
        mean_retention({"GQA": 1.0}, {"POPE": 1.0})
    with pytest.raises(ValueError, match="the reference's score of POPE is 0, so nothing can be retained of it"):
        mean_retention({"GQA": 1.0, "POPE": 1.0}, {"GQA": 1.0, "POPE": 0.0})
