"""Figures with their uncertainty: accuracies, paired comparisons of two fixed checkpoints, exact tests.

The bootstrap resamples items. Resampling n items with replacement is one multinomial draw over the distinct rows
that occur (right or wrong, or the few values of a soft score), so 10,000 resamples cost milliseconds at any n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

RESAMPLES = 10_000
LEVEL = 0.95
ALPHA = 0.05

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Column means of each resample, `(resamples, columns)`, to one number per resample, `(resamples,)`."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with the ends of its 95 % interval and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two fixed checkpoints on the same items; `other` is judged against `base`.

    `difference` is accuracy of other minus base, `retention` their ratio, `loss` the share of items that other
    misses among those that base has right, `gain` the share that other has right among those that base misses.
    Figures without a denominator are None.
    """

    difference: Estimate
    retention: Estimate | None
    loss: Estimate | None
    gain: Estimate | None
    p_value: float
    """Exact McNemar, two-sided."""

    @property
    def within_noise(self) -> bool:
        """Whether the test does not tell the two checkpoints apart."""
        return self.p_value > ALPHA


def resampled_means(rows: NDArray[np.float64], seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Column means of bootstrap resamples of the rows.

    Args:
        rows: `(n, columns)`, one row per item.
        seed: equal seeds give equal resamples.
        resamples: how many.

    Returns:
        `(resamples, columns)`.
    """
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(rows), counts / len(rows), size=resamples)
    means: NDArray[np.float64] = drawn @ distinct / len(rows)
    return means


def accuracy(scores: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean score with its bootstrap interval.

    Where all answers are right, or all wrong, a bootstrap knows no spread; there the Wilson interval stands in.

    Raises:
        ValueError: if there are no scores, or one is no number.
    """
    values = _column(scores)
    if _saturated(values):
        return _wilson(int(values.sum()), len(values))
    return _estimate(values[:, None], lambda means: means[:, 0], seed, resamples)


def macro_accuracy(groups: Mapping[str, ArrayLike], seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Unweighted mean of the groups' accuracies, resampled inside each group.

    Where every group is all right, or every one all wrong, the Wilson interval stands in, over as many items as would
    give an average without groups the same variance: the number of groups squared, over the sum of 1 / items.

    Raises:
        ValueError: if there are no groups, one is empty, or a score is no number.
    """
    if not groups:
        raise ValueError("a macro average needs at least one group of scores, none given")
    columns = [_column(scores) for scores in groups.values()]
    items = sum(map(len, columns))
    if _saturated(np.concatenate(columns)):
        worth = max(1, int(len(columns) ** 2 / sum(1 / len(column) for column in columns)))
        return replace(_wilson(worth * int(columns[0][0]), worth), n=items)
    draws = [resampled_means(column[:, None], seed + i, resamples)[:, 0] for i, column in enumerate(columns)]
    low, high = _ends(np.mean(draws, axis=0))
    value = float(np.mean([column.mean() for column in columns]))
    return Estimate(value=value, low=low, high=high, n=items)


def mcnemar(base_right: ArrayLike, other_right: ArrayLike) -> float:
    """Exact two-sided McNemar p-value of two fixed checkpoints on the same items; 1 where they never differ.

    Args:
        base_right: `(n,)` boolean.
        other_right: `(n,)` boolean, the same items in the same order.
    """
    base, other = np.asarray(base_right, dtype=bool), np.asarray(other_right, dtype=bool)
    lost, won = int(np.sum(base & ~other)), int(np.sum(~base & other))
    return float(binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0


def compare(
    base: ArrayLike,
    other: ArrayLike,
    *,
    right: float = 0.5,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Judge a checkpoint against another on the same items.

    Args:
        base: `(n,)` scores of the one compared with.
        other: `(n,)` scores of the one judged, the same items in the same order.
        right: from this score on an answer is right.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ValueError: if there are no items, or not equally many.
    """
    first, second = _column(base), _column(other)
    if len(first) != len(second):
        raise ValueError(f"a paired comparison needs the same items, got {len(first)} and {len(second)} scores")
    had, has = first >= right, second >= right
    rows = np.column_stack([first, second, had, had & ~has, ~had, ~had & has]).astype(np.float64)
    return Comparison(
        difference=_estimate(rows, lambda means: means[:, 1] - means[:, 0], seed, resamples),
        retention=_ratio(rows, 1, 0, seed, resamples),
        loss=_share(rows, 3, 2, seed, resamples),
        gain=_share(rows, 5, 4, seed, resamples),
        p_value=mcnemar(had, has),
    )


def mean_retention(scores: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """The average of the paper's Tables 1 and 2: the mean over benchmarks of score by uncompressed score, in per cent.

    Raises:
        ValueError: if the two are not of the same benchmarks, there are none, or an uncompressed score is 0.
    """
    if set(scores) != set(reference) or not scores:
        raise ValueError(f"scores are of {sorted(scores)}, the reference's of {sorted(reference)}: give the same ones")
    if nothing := [name for name in sorted(reference) if not reference[name]]:
        raise ValueError(f"the reference's score of {', '.join(nothing)} is 0, so nothing can be retained of it")
    return 100.0 * float(np.mean([scores[name] / reference[name] for name in scores]))


def _column(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"scores have shape {values.shape}, expected a list of at least one")
    if not np.isfinite(values).all():
        raise ValueError(f"score {int(np.flatnonzero(~np.isfinite(values))[0])} is no number: judge that item again")
    return values


def _saturated(values: NDArray[np.float64]) -> bool:
    """Whether all answers are right, or all wrong."""
    return bool(values[0] in (0.0, 1.0) and np.all(values == values[0]))


def _share(rows: NDArray[np.float64], top: int, bottom: int, seed: int, resamples: int) -> Estimate | None:
    """The share of the items in one indicator column that are in another too."""
    hits, members = int(rows[:, top].sum()), int(rows[:, bottom].sum())
    if members and hits in (0, members):
        return _wilson(hits, members)
    return _ratio(rows, top, bottom, seed, resamples, n=members)


def _wilson(hits: int, n: int) -> Estimate:
    interval = binomtest(hits, n).proportion_ci(LEVEL, method="wilson")
    return Estimate(value=hits / n, low=float(interval.low), high=float(interval.high), n=n)


def _ratio(
    rows: NDArray[np.float64], top: int, bottom: int, seed: int, resamples: int, *, n: int | None = None
) -> Estimate | None:
    """Ratio of two column means; None where the one below is zero."""
    if not rows[:, bottom].any():
        return None

    def ratio(means: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return means[:, top] / means[:, bottom]

    return _estimate(rows, ratio, seed, resamples, n)


def _estimate(
    rows: NDArray[np.float64], statistic: Statistic, seed: int, resamples: int, n: int | None = None
) -> Estimate:
    value = float(statistic(rows.mean(axis=0, keepdims=True))[0])
    low, high = _ends(statistic(resampled_means(rows, seed, resamples)))
    return Estimate(value=value, low=low, high=high, n=len(rows) if n is None else n)


def _ends(values: NDArray[np.float64]) -> tuple[float, float]:
    """The percentile interval of the resamples that are numbers."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values[np.isfinite(values)], [tail, 1 - tail])
    return float(low), float(high)
