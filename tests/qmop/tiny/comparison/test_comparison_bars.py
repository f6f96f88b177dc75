from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qmop.tiny.comparison.bars import Bar, bars
from qmop.tiny.comparison.results import Results
from qmop.tiny.comparison.table import page

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


def test_losses_are_measured_on_the_items_of_every_level() -> None:
    whole = [1] * 20
    pooled = [*[1, 0, 1, 1, 0], *[1, 1, 0, 1, 0], *[1, 1, 1, 1, 0], *[1, 1, 1, 1, 0]]
    told = results(uncompressed=whole, average_pool=pooled, random=[0] * 10 + [1] * 10)
    third = pytest.approx(100 / 3)
    assert bars(told) == [
        Bar(what="average pooling loses on LD", wanted=10.0, points={"core": 100.0, "hard": 100.0}),
        Bar(
            what="average pooling loses on the second most affected other",
            wanted=5.0,
            points={"core": third, "hard": 0.0},
        ),
        Bar(what="random tokens lose", wanted=15.0, points={"core": pytest.approx(200 / 3), "hard": 0.0}),
    ]
    lines = page(told).split("tell methods apart?\n\n")[1].splitlines()
    assert lines[0] == "| points at 16 tokens | wanted | core | hard |"
    assert lines[3] == "| average pooling loses on the second most affected other | 5 | 33.3 | 0.0, missed |"


def test_a_level_that_lacks_a_dimension_is_left_out() -> None:
    told = results(uncompressed=[1] * 20, random=[0] * 20)
    scarce = replace(told, dimension=np.array([*DIMENSION[:15], *["GU"] * 5]))
    assert [list(bars(one)[0].points) for one in (told, scarce)] == [["core", "hard"], ["core"]]


def test_the_oracle_is_held_against_blind_pruning() -> None:
    (found,) = bars(results(oracle_pruning=[1] * 20, blind_pruning=[0] * 3 + [1] * 17))
    assert (found.what, found.wanted) == ("oracle pruning leads blind pruning", 10.0)
    assert found.points == {"core": pytest.approx(20.0), "hard": 0.0}


def test_nothing_is_said_of_rows_that_are_missing() -> None:
    assert bars(results(uncompressed=[1] * 20)) == []
