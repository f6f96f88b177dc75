"""Records in groups: by dimension, by level, by task family, always in the order in which reports tell them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np

from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.records import Record
from qmop.vtcbench.report_types import TaskFamily

LEVELS = ("core", "hard", "held_out")
"""In the order in which they are told."""

T = TypeVar("T")


def scores_by(pairs: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    """Values by name, in the order in which the names are first seen."""
    groups: dict[str, list[float]] = defaultdict(list)
    for name, value in pairs:
        groups[name].append(value)
    return dict(groups)


def mean_by(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of the values of each name."""
    return {name: float(np.mean(values)) for name, values in scores_by(pairs).items()}


def by_dimension(groups: Mapping[str, T]) -> dict[str, T]:
    """The dimensions in the order of the paper's tables."""
    return {code: groups[code] for code in DIMENSIONS if code in groups}


def by_level(groups: Mapping[str, T]) -> dict[str, T]:
    """Core first, then hard, then held-out, then what else there is."""
    return {name: groups[name] for name in (*LEVELS, *sorted(set(groups) - set(LEVELS))) if name in groups}


def chance_of(records: Iterable[Record]) -> dict[str, float]:
    """Accuracy of a uniform guess on items: per dimension, for `micro`, and where there are dimensions for `macro`."""
    pairs = [(record.dimension, record.chance) for record in records]
    means = by_dimension(mean_by(pairs))
    macro = {"macro": float(np.mean(list(means.values())))} if means else {}
    return {**means, "micro": float(np.mean([chance for _, chance in pairs])), **macro}


def families(records: Iterable[Record]) -> dict[str, TaskFamily]:
    """Task families by name, those of the first dimension first."""
    codes = list(DIMENSIONS)
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.task].append(record)
    found = {
        task: TaskFamily(
            dimensions=tuple(code for code in codes if any(record.dimension == code for record in members)),
            n=len(members),
            chance=float(np.mean([record.chance for record in members])),
        )
        for task, members in groups.items()
    }
    return dict(
        sorted(found.items(), key=lambda pair: [codes.index(code) for code in pair[1].dimensions] or [len(codes)])
    )
