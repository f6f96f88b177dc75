"""Records of a comparison as matrices."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmop.tiny.comparison.rows import ORACLE, ORACLE_OF, Unit
from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.records import Record

LEVELS = ("core", "hard", "held_out")
Cell = tuple[str, int]
"""A row's name and a budget."""


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
