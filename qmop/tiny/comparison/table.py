"""A comparison's page: accuracies with intervals, registered tests, what is exploratory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qmop.tiny.comparison.bars import Bar, bars
from qmop.tiny.comparison.results import LEVELS, Results
from qmop.tiny.comparison.rows import FULL, ORACLE, PRIMARY, REGISTERED, ROWS
from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.methods import Difference, holm, method_accuracy, method_difference
from qmop.vtcbench.statistics import ALPHA, Estimate

_EVERYWHERE = ("uncompressed", "blind")
"""References that the budget does not touch; they stand in every table."""


def page(results: Results) -> str:
    """The tables in Markdown."""
    budgets = sorted({budget for _, budget in results.right}, key=lambda budget: (budget != PRIMARY, -budget))
    tables = [
        f"### {budget} of {FULL} tokens\n\n{_accuracies(results, budget)}" for budget in budgets if budget != FULL
    ]
    parts = [_registered(results), *tables]
    if found := bars(results):
        parts.append(f"### Does the world tell methods apart?\n\n{_bars(found)}")
    if results.weights:
        parts.append(f"### Router\n\n{_router(results)}")
    return "\n\n".join(part for part in parts if part)


def differences(results: Results) -> list[tuple[str, str, Difference, float]]:
    """The registered comparisons that can be made, with corrected p-values."""
    ready = [pair for pair in REGISTERED if all((name, PRIMARY) in results.right for name in pair)]
    found = [method_difference(results.right[other, PRIMARY], results.right[mine, PRIMARY]) for mine, other in ready]
    missing = [1.0] * (len(REGISTERED) - len(ready))
    corrected = holm([*(difference.p_value for difference in found), *missing])[: len(found)]
    return [(*pair, difference, p) for pair, difference, p in zip(ready, found, corrected, strict=True)]


def _registered(results: Results) -> str:
    lines = ["| registered comparison | runs | difference in points | p, Holm | |", "|---|---|---|---|---|"]
    for mine, other, difference, p in differences(results):
        verdict = "within noise" if p > ALPHA else "better" if difference.estimate.value > 0 else "worse"
        if min(difference.runs) == 1:
            verdict = "no claim: a single run"
        runs = " and ".join(map(str, difference.runs))
        told = f"{'≤ ' if difference.p_value <= difference.least_p else ''}{p:.4f}"
        lines.append(f"| {mine} against {other} | {runs} | {_signed(difference.estimate)} | {told} | {verdict} |")
    return "\n".join(lines)


def _accuracies(results: Results, budget: int) -> str:
    """One line for each row that ran at a budget, references of other budgets above."""
    cells = [cell for cell in results.right if cell[1] == budget or cell[0] in _EVERYWHERE]
    order = [*ROWS, ORACLE]
    cells.sort(key=lambda cell: order.index(cell[0]))
    whole = results.right.get(("uncompressed", FULL))
    head = ["row", "runs", "micro", *DIMENSIONS, *LEVELS, "loss", "CPU min"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for cell in cells:
        scores = results.right[cell]
        dimensions = [_percent(scores[:, results.dimension == name]) for name in DIMENSIONS]
        levels = [_percent(scores[:, results.level == name]) for name in LEVELS]
        minutes = f"{results.seconds[cell] / 60:.1f}" if cell in results.seconds else ""
        lost = _loss(whole, scores)
        told = [cell[0], str(len(scores)), _interval(method_accuracy(scores)), *dimensions, *levels, lost, minutes]
        lines.append("| " + " | ".join(told) + " |")
    return "\n".join(lines)


def _loss(whole: NDArray[np.float64] | None, scores: NDArray[np.float64]) -> str:
    """Share of the items that uncompressed runs have right and the others have not; run i against run i."""
    if whole is None:
        return ""
    shares = [
        float((1 - scores[run])[whole[(run + (scores is whole)) % len(whole)] > 0].mean()) for run in range(len(scores))
    ]
    return f"{100 * np.mean(shares):.1f}"


def _router(results: Results) -> str:
    lines = ["| row | " + " | ".join(DIMENSIONS) + " |", "|" + "---|" * (1 + len(DIMENSIONS))]
    for (name, budget), by in results.weights.items():
        shares = ["/".join(f"{100 * weight:.0f}" for weight in by[dimension]) for dimension in by]
        lines.append(f"| {name} @{budget} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def _bars(found: list[Bar]) -> str:
    levels = list(found[0].points)
    lines = [f"| points at {PRIMARY} tokens | wanted | {' | '.join(levels)} |", "|" + "---|" * (2 + len(levels))]
    for bar in found:
        told = [f"{had:.1f}{'' if had >= bar.wanted else ', missed'}" for had in bar.points.values()]
        lines.append(f"| {bar.what} | {bar.wanted:g} | {' | '.join(told)} |")
    return "\n".join(lines)


def _percent(scores: NDArray[np.float64]) -> str:
    return f"{100 * scores.mean():.1f}" if scores.size else ""


def _interval(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f}-{100 * estimate.high:.1f})"


def _signed(estimate: Estimate) -> str:
    return f"{100 * estimate.value:+.1f} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"
