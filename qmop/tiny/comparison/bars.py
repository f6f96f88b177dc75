"""Whether the world tells methods apart: four bars, each measured on the items of every level."""

from __future__ import annotations

from dataclasses import dataclass

from qmop.tiny.comparison.results import LEVELS, Results
from qmop.tiny.comparison.rows import FULL, PRIMARY
from qmop.vtcbench.items import DIMENSIONS


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What is wanted of the world at the primary budget, and what it does, in points for each level that was asked."""

    what: str
    wanted: float
    points: dict[str, float]


def bars(results: Results) -> list[Bar]:
    """The bars that can be measured on the rows that ran."""
    levels = [level for level in LEVELS if set(results.dimension[results.level == level]) >= set(DIMENSIONS)]
    there = {name for name, budget in results.right if budget in (PRIMARY, FULL)}
    found = []
    if {"uncompressed", "average_pool"} <= there:
        lost = {level: {code: _lost(results, "average_pool", level, code) for code in DIMENSIONS} for level in levels}
        local = {level: by.pop("LD") for level, by in lost.items()}
        second = {level: sorted(by.values())[-2] for level, by in lost.items()}
        found.append(Bar(what="average pooling loses on LD", wanted=10.0, points=local))
        found.append(Bar(what="average pooling loses on the second most affected other", wanted=5.0, points=second))
    if {"uncompressed", "random"} <= there:
        points = {level: _lost(results, "random", level) for level in levels}
        found.append(Bar(what="random tokens lose", wanted=15.0, points=points))
    if {"oracle pruning", "blind pruning"} <= there:
        led = {
            level: _points(results, "oracle pruning", level) - _points(results, "blind pruning", level)
            for level in levels
        }
        found.append(Bar(what="oracle pruning leads blind pruning", wanted=10.0, points=led))
    return found


def _lost(results: Results, name: str, level: str, dimension: str | None = None) -> float:
    return _points(results, "uncompressed", level, dimension, FULL) - _points(results, name, level, dimension)


def _points(results: Results, name: str, level: str, dimension: str | None = None, budget: int = PRIMARY) -> float:
    chosen = results.level == level
    if dimension is not None:
        chosen &= results.dimension == dimension
    return 100 * float(results.right[name, budget][:, chosen].mean())
