"""What routers did: mean weights by dimension, how sure they were, which branches ran."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from math import isclose

import numpy as np
from scipy.stats import entropy

from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.records import Record
from qmop.vtcbench.report_types import RouterUse

BRANCH_NAMES = ("resampler", "window_pool", "prune")
"""The mixture's branches in the order of its router's weights."""
EVERYTHING = "all"


def names_of(width: int, names: Sequence[str] = BRANCH_NAMES) -> list[str]:
    """The names of that many branches; numbers where there are not as many names."""
    return list(names) if len(names) == width else [f"branch {index + 1}" for index in range(width)]


def mean_weights(records: Iterable[Record], names: Sequence[str] = BRANCH_NAMES) -> dict[str, dict[str, float]]:
    """Mean weight per branch, for each dimension and for all items; empty without a router."""
    groups: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for record in records:
        if record.branch_weights is not None:
            groups[record.dimension].append(record.branch_weights)
    if not groups:
        return {}
    ordered = {code: groups[code] for code in DIMENSIONS if code in groups}
    everything = {**ordered, EVERYTHING: [weights for group in groups.values() for weights in group]}
    means = {name: np.mean(weights, axis=0) for name, weights in everything.items()}
    known = names_of(len(means[EVERYTHING]), names)
    return {name: dict(zip(known, map(float, mean), strict=True)) for name, mean in means.items()}


def router_use(records: Iterable[Record], names: Sequence[str] = BRANCH_NAMES) -> RouterUse | None:
    """How sure a router was and which branches it ran; None without one."""
    weights = [record.branch_weights for record in records if record.branch_weights is not None]
    if not weights:
        return None
    known = names_of(len(weights[0]), names)
    ran = Counter(
        " + ".join(name for name, share in zip(known, row, strict=True) if not isclose(share, 0.0, abs_tol=1e-9))
        for row in weights
    )
    return RouterUse(
        entropy=float(np.mean(entropy(np.asarray(weights), base=2, axis=1))),
        choices={branches: count / len(weights) for branches, count in ran.most_common()},
    )
