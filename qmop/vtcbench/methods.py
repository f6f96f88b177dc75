"""Claims about methods, not checkpoints: several runs of each, resampled over seeds and items together.

Two checkpoints of one method that differ in their seed alone differ too, so a test of two checkpoints says nothing
about their methods. Here both what was trained and what was asked is drawn anew in every resample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from statsmodels.stats.multitest import multipletests

from qmop.vtcbench.statistics import LEVEL, RESAMPLES, Estimate, resampled_means


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A method against another: the mean difference of their accuracies over seeds, and how sure it is.

    `p_value` is two-sided; `runs` counts those of the first and the second.
    """

    estimate: Estimate
    p_value: float
    runs: tuple[int, int]


def method_accuracy(scores: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean accuracy of a method over its runs, with the interval over runs and items.

    Args:
        scores: `(runs, items)`, the same items in the same order in every run.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ValueError: if there is no run or no item.
    """
    runs = _runs(scores)
    draws = _resampled([runs], seed, resamples)[0]
    low, high = _interval(draws)
    return Estimate(value=float(runs.mean()), low=low, high=high, n=runs.shape[1])


def method_difference(base: ArrayLike, other: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Difference:
    """How much better one method is than another.

    Items are drawn once for both, since both answered the same ones; runs are drawn for each by itself.

    Args:
        base: `(runs, items)` of the one compared with.
        other: `(runs, items)` of the one judged, the same items in the same order; another number of runs may be.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ValueError: if there is no run, or the items differ in number.
    """
    first, second = _runs(base), _runs(other)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"a comparison needs the same items, got {first.shape[1]} and {second.shape[1]}")
    lows, highs = _resampled([first, second], seed, resamples)
    draws = highs - lows
    low, high = _interval(draws)
    estimate = Estimate(value=float(second.mean() - first.mean()), low=low, high=high, n=first.shape[1])
    beyond = 1 + min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Difference(estimate=estimate, p_value=min(1.0, 2 * beyond / (resamples + 1)), runs=(len(first), len(second)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, by Holm's step-down method."""
    return [float(value) for value in multipletests(p_values, method="holm")[1]] if p_values else []


def _runs(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or not values.size:  # noqa: PLR2004 - runs by items
        raise ValueError(f"scores have shape {values.shape}, expected runs by items, at least one of each")
    return values


def _resampled(methods: Sequence[NDArray[np.float64]], seed: int, resamples: int) -> list[NDArray[np.float64]]:
    """Accuracies of every method in each resample, `(resamples,)` each.

    Resampling few runs gives a spread that is too small by (runs - 1) / runs, so what a drawn set of runs is off the
    mean of all is stretched by the root of that.
    """
    means = resampled_means(np.concatenate(methods).T, seed, resamples)
    rng = np.random.default_rng((seed, 1))
    found, first = [], 0
    for method in methods:
        own = means[:, first : first + len(method)]
        first += len(method)
        drawn = rng.integers(len(method), size=own.shape)
        centre = own.mean(axis=1)
        stretch = np.sqrt(len(method) / (len(method) - 1)) if len(method) > 1 else 0.0
        found.append(centre + stretch * (np.take_along_axis(own, drawn, axis=1).mean(axis=1) - centre))
    return found


def _interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
