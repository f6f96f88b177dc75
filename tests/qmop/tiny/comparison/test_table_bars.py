from __future__ import annotations

import numpy as np
import pytest

from qmop.tiny.comparison.table import Results, bars

DIMENSION = np.array(["GU", "SC", "RC", "SE", "LD"] * 4)
LEVEL = np.array(["core"] * 15 + ["hard"] * 5)


def results(**right: list[int]) -> Results:
    """One run of each row; `right` says which of four items each dimension has right, core items first."""
    named = {name.replace("_pruning", " pruning"): values for name, values in right.items()}
    return Results(
        right={
            (name, 144 if name == "uncompressed" else 16): np.array([values], dtype=float)
            for name, values in named.items()
        },
        weights={},
        dimension=DIMENSION,
        level=LEVEL,
        digest="",
        suite_digest="",
        seconds={},
    )


def test_losses_are_those_of_core_items() -> None:
    whole = [1] * 20
    pooled = [1, 0, 1, 1, 0] + [1, 1, 0, 1, 0] + [1, 1, 1, 1, 0] + [0] * 5
    found = bars(results(uncompressed=whole, average_pool=pooled, random=[0] * 10 + [1] * 10))
    assert found == [
        ("average pooling loses on LD", 100.0, 10.0),
        ("average pooling loses on the second most affected other", pytest.approx(100 / 3), 5.0),
        ("random tokens lose", pytest.approx(200 / 3), 15.0),
    ]


def test_the_oracle_is_held_against_blind_pruning() -> None:
    found = bars(results(oracle_pruning=[1] * 20, blind_pruning=[0] * 3 + [1] * 17))
    assert found == [("oracle pruning leads blind pruning", pytest.approx(20.0), 10.0)]


def test_nothing_is_said_of_rows_that_are_missing() -> None:
    assert bars(results(uncompressed=[1] * 20)) == []
