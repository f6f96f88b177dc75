"""Accuracy against difficulty: the size of a detail, the number of distractors, steps of inference, contrast."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from qmop.vtcbench.dimensions import FAMILIES
from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.records import Record
from qmop.vtcbench.report_types import Curve, Point
from qmop.vtcbench.statistics import RESAMPLES, accuracy

STEPS = 5
"""Points of a curve at most."""
_FEWEST = 20
"""Items of a point, about, as far as there are enough for two points."""
_UNITS = {family.task: family.unit for family in FAMILIES}
_ELSEWHERE = "held_out"


def difficulty_curves(records: Iterable[Record], *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[Curve, ...]:
    """The curves of all labels, in the order of the dimensions; units with one difficulty alone make none.

    Args:
        records: of one suite, any number of labels; those without a difficulty are passed over.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.difficulty is not None and record.level != _ELSEWHERE and record.dimension in DIMENSIONS:
            unit = _UNITS.get(record.task, "difficulty")
            groups.setdefault((record.dimension, unit), []).append(record)
    codes = list(DIMENSIONS)
    curves = [
        Curve(dimension=dimension, unit=unit, points=_points(groups[dimension, unit], seed, resamples))
        for dimension, unit in sorted(groups, key=lambda group: (codes.index(group[0]), group[1]))
    ]
    return tuple(curve for curve in curves if len(curve.points) > 1)


def bins(values: Sequence[float], most: int = STEPS) -> list[tuple[float, float]]:
    """Ends of stretches that hold all values, about equally many in each: one per value where they are few.

    Equal values are never parted, so that the stretches do not overlap.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    if len(distinct) <= most:
        return [(float(value), float(value)) for value in distinct]
    before = np.cumsum(counts) - counts / 2
    place = np.minimum((before * most / counts.sum()).astype(int), most - 1)
    parts = [distinct[place == step] for step in range(most)]
    return [(float(part[0]), float(part[-1])) for part in parts if len(part)]


def _points(records: Sequence[Record], seed: int, resamples: int) -> tuple[Point, ...]:
    items = {record.key: record for record in records}
    most = max(2, min(STEPS, len(items) // _FEWEST))
    stretches = bins([_difficulty(record) for record in items.values()], most)
    return tuple(_point(records, low, high, seed, resamples) for low, high in stretches)


def _point(records: Sequence[Record], low: float, high: float, seed: int, resamples: int) -> Point:
    inside = [record for record in records if low <= _difficulty(record) <= high]
    items = {record.key: record for record in inside}
    scores: dict[str, list[float]] = {}
    for record in inside:
        scores.setdefault(record.label, []).append(record.score)
    return Point(
        difficulty=float(np.mean([_difficulty(record) for record in items.values()])),
        low=low,
        high=high,
        chance=float(np.mean([record.chance for record in items.values()])),
        accuracies={label: accuracy(values, seed, resamples) for label, values in scores.items()},
    )


def _difficulty(record: Record) -> float:
    assert record.difficulty is not None, "those without were passed over"
    return record.difficulty
