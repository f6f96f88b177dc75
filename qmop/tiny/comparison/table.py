"""Records of a comparison to its page: accuracies with intervals, registered tests, what is exploratory."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmop.tiny.comparison.rows import FULL, ORACLE, ORACLE_OF, PRIMARY, REGISTERED, ROWS, Unit
from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.methods import Difference, holm, method_accuracy, method_difference
from qmop.vtcbench.records import Record
from qmop.vtcbench.statistics import ALPHA, Estimate

LEVELS = ("core", "hard", "held_out")
Cell = tuple[str, int]
"""A row's name and a budget."""
_EVERYWHERE = ("uncompressed", "blind")
"""References that the budget does not touch; they stand in every table."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """All records, as matrices.

    Attributes:
        right: `(runs, items)` for each row and budget.
        weights: mean branch weights by dimension, for rows with a router.
        dimension: of each item.
        level: of each item.
        digest: SHA-256 over key and score of every record, in order.
        suite_digest: of the suite that judged.
        seconds: CPU seconds of a run, mean, for each row and budget.
    """

    right: dict[Cell, NDArray[np.float64]]
    weights: dict[Cell, dict[str, NDArray[np.float64]]]
    dimension: NDArray[np.str_]
    level: NDArray[np.str_]
    digest: str
    suite_digest: str
    seconds: dict[Cell, float]


def gather(found: Sequence[tuple[Unit, list[Record]]]) -> Results:
    """Matrices of what is finished.

    Raises:
        ValueError: if nothing is, or runs answered different items.
    """
    if not found:
        raise ValueError("no run is finished yet: there is nothing to tabulate")
    first = found[0][1]
    asked = [(record.key, record.suite_digest) for record in first]
    scores: dict[Cell, list[list[float]]] = defaultdict(list)
    seconds: dict[Cell, list[float]] = defaultdict(list)
    weights: dict[Cell, list[Record]] = defaultdict(list)
    digest = hashlib.sha256()
    for unit, records in sorted(found, key=lambda pair: pair[0].label):
        if [(record.key, record.suite_digest) for record in records] != asked:
            raise ValueError(f"{unit.label} answered other items than {found[0][0].label}: run both anew")
        cell = (unit.row.name, unit.tokens)
        scores[cell].append([record.score for record in records])
        seconds[cell].append(sum(record.seconds for record in records))
        if any(record.branch_weights for record in records):
            weights[cell] += records
        digest.update(unit.label.encode() + b"".join(f"{r.key}={r.score:g}\n".encode() for r in records))
    right = {cell: np.array(rows) for cell, rows in scores.items()}
    return Results(
        right=right | _oracle(right),
        weights={cell: _weights(records) for cell, records in weights.items()},
        dimension=np.array([record.dimension for record in first]),
        level=np.array([record.level for record in first]),
        digest=digest.hexdigest(),
        suite_digest=first[0].suite_digest,
        seconds={cell: float(np.mean(values)) for cell, values in seconds.items()},
    )


def _weights(records: Sequence[Record]) -> dict[str, NDArray[np.float64]]:
    by: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for record in records:
        if record.branch_weights is not None:
            by[record.dimension].append(record.branch_weights)
    return {name: np.mean(by[name], axis=0) for name in DIMENSIONS if name in by}


def _oracle(right: dict[Cell, NDArray[np.float64]]) -> dict[Cell, NDArray[np.float64]]:
    """The best branch of every item, seed by seed, wherever all branches ran."""
    found = {}
    for budget in {budget for _, budget in right}:
        branches = [right[name, budget] for name in ORACLE_OF if (name, budget) in right]
        if len(branches) == len(ORACLE_OF):
            runs = min(map(len, branches))
            found[ORACLE, budget] = np.max([branch[:runs] for branch in branches], axis=0)
    return found


def bars(results: Results) -> list[tuple[str, float, float]]:
    """Whether the world tells methods apart, at the primary budget on core items: what, points found, points wanted.

    Only what can be said of the rows that ran.
    """
    core = results.level == "core"

    def points(name: str, dimension: str | None = None, budget: int = PRIMARY) -> float:
        chosen = core if dimension is None else core & (results.dimension == dimension)
        return 100 * float(results.right[name, budget][:, chosen].mean())

    there = {name for name, budget in results.right if budget == PRIMARY}
    found: list[tuple[str, float, float]] = []
    if ("uncompressed", FULL) in results.right:
        if "average_pool" in there:
            lost = {name: points("uncompressed", name, FULL) - points("average_pool", name) for name in DIMENSIONS}
            found.append(("average pooling loses on LD", lost.pop("LD"), 10.0))
            found.append(("average pooling loses on the second most affected other", sorted(lost.values())[-2], 5.0))
        if "random" in there:
            found.append(("random tokens lose", points("uncompressed", None, FULL) - points("random"), 15.0))
    if {"oracle pruning", "blind pruning"} <= there:
        found.append(("oracle pruning leads blind pruning", points("oracle pruning") - points("blind pruning"), 10.0))
    return found


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
        lines.append(f"| {mine} against {other} | {runs} | {_signed(difference.estimate)} | {p:.4f} | {verdict} |")
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


def _bars(found: list[tuple[str, float, float]]) -> str:
    lines = ["| at 16 tokens, core items | points | wanted | |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {had:.1f} | {wanted:g} | {'met' if had >= wanted else 'missed'} |" for what, had, wanted in found
    ]
    return "\n".join(lines)


def _percent(scores: NDArray[np.float64]) -> str:
    return f"{100 * scores.mean():.1f}" if scores.size else ""


def _interval(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f}-{100 * estimate.high:.1f})"


def _signed(estimate: Estimate) -> str:
    return f"{100 * estimate.value:+.1f} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"
