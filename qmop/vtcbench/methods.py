"""Claims about methods, not checkpoints: several runs of each, resampled over seeds and items together.

Two checkpoints of one method that differ in their seed alone differ too, so a test of two checkpoints says nothing
about their methods. Here both what was trained and what was asked is drawn anew in every resample. Few runs tell little
about their own spread, so the spread is drawn as well, as it is in Student's t: without that, at a level of 5 %, twelve
of a hundred comparisons of equals with three runs each were found different, and with it at most five, whether runs
differ by much, by little or not at all. The 95 % interval of one method then holds its true accuracy in 92 to 95 of a
hundred cases with three or six runs, and in 89 with two; from a single run nothing is known about what runs differ by.
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

    `p_value` is two-sided, and `least_p` the smallest that so many resamples can give; `runs` counts those of the first
    and the second.
    """

    estimate: Estimate
    p_value: float
    runs: tuple[int, int]
    least_p: float = 0.0


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
    low, high = _interval(draws.clip(0, 1))  # few runs far apart reach beyond
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
    least = 2 / (resamples + 1)
    count = (len(first), len(second))
    return Difference(estimate=estimate, p_value=min(1.0, beyond * least), runs=count, least_p=least)


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

    Drawing runs and items of a matrix at once counts the noise of a single answer three times. So items are drawn for
    the mean over runs, and what the drawn runs are off that mean is added to it, shrunk to what runs truly differ by.
    """
    items = resampled_means(np.stack([method.mean(axis=0) for method in methods], axis=1), seed, resamples)
    rng = np.random.default_rng((seed, 1))
    return [items[:, place] + _between(method, rng, resamples) for place, method in enumerate(methods)]


def _between(method: NDArray[np.float64], rng: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    """What drawing the runs anew adds to the mean, `(resamples,)`; nothing where there is one run.

    Run means vary by what runs differ in and by the noise of single answers; the second, estimated from what neither
    run nor item explains, is taken out. Resampling few runs gives a spread too small by (runs - 1) / runs: put back.
    The spread of few runs is itself a guess; dividing each draw by the root of a chi-square over its degrees of freedom
    makes tails as long as those of Student's t with runs - 1.
    """
    count, items = method.shape
    if count == 1:
        return np.zeros(resamples)
    off = method.mean(axis=1) - method.mean()
    spread = off @ off / (count - 1)
    rest = method - method.mean(axis=0) - off[:, None]
    noise = (rest * rest).sum() / ((count - 1) * max(1, items - 1)) / items
    true = max(0.0, 1.0 - noise / spread) if spread > 0 else 0.0
    drawn: NDArray[np.float64] = off[rng.integers(count, size=(resamples, count))].mean(axis=1)
    guessed = np.sqrt(rng.chisquare(count - 1, size=resamples) / (count - 1))
    return drawn / guessed * np.sqrt(true * count / (count - 1))


def _interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
