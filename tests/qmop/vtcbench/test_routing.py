from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log2

import pytest

from qmop.vtcbench.records import Record
from qmop.vtcbench.routing import mean_weights, router_use

Answered = Callable[..., list[Record]]


def test_entropy_and_the_branches_that_ran(answered: Answered) -> None:
    weights = [(0.5, 0.5, 0.0), (1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.25, 0.25, 0.5)]
    records = [replace(r, branch_weights=w) for r, w in zip(answered("qmop", bool), weights, strict=False)]

    use = router_use(records)

    assert use is not None
    assert use.entropy == pytest.approx((1 + 0 + 1 + 1.5) / 4)
    assert dict(use.choices) == {
        "resampler + window_pool": 0.5,
        "resampler": 0.25,
        "resampler + window_pool + prune": 0.25,
    }


def test_equal_weights_have_the_most_entropy(answered: Answered) -> None:
    use = router_use(answered("qmop", bool, branch_weights=(0.25,) * 4))

    assert use is not None
    assert use.entropy == pytest.approx(log2(4))
    assert list(use.choices) == ["branch 1 + branch 2 + branch 3 + branch 4"]


def test_without_a_router_there_is_nothing(answered: Answered) -> None:
    assert router_use(answered("a", bool)) is None
    assert mean_weights(answered("a", bool)) == {}
