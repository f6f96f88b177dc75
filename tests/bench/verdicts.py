"""Whether a measured ratio keeps its limit: one rule for all benchmarks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from scipy import stats


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % interval (Student's t)."""
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return statistics.fmean(values), float(low), float(high)


def at_least(found: tuple[float, float, float], limit: float) -> str:
    """What to call a mean and its interval that should not be below a limit."""
    mean, low, _ = found
    return "met" if low >= limit else "met by the mean alone" if mean >= limit else "missed"


def at_most(found: tuple[float, float, float], limit: float) -> str:
    """What to call a mean and its interval that should not be above a limit."""
    mean, _, high = found
    return "met" if high <= limit else "met by the mean alone" if mean <= limit else "missed"
