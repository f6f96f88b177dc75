from __future__ import annotations

from dataclasses import replace

import pytest

from qmop.vtcbench.grouping import by_dimension, by_level, chance_of, families, mean_by, scores_by
from qmop.vtcbench.records import Record


def test_values_are_gathered_and_averaged_by_name() -> None:
    pairs = [("b", 1.0), ("a", 0.5), ("b", 0.0)]

    assert scores_by(pairs) == {"b": [1.0, 0.0], "a": [0.5]}
    assert mean_by(pairs) == {"b": 0.5, "a": 0.5}


def test_dimensions_and_levels_have_their_order() -> None:
    assert list(by_dimension({"LD": 1, "none": 2, "GU": 3})) == ["GU", "LD"]
    assert list(by_level({"x": 1, "held_out": 2, "core": 3, "a": 4})) == ["core", "held_out", "a", "x"]


def test_chance_is_averaged_over_items_and_over_dimensions(evaluation: list[Record]) -> None:
    some = [
        replace(evaluation[0], dimension=code, chance=chance)
        for code, chance in (("GU", 0.5), ("GU", 0.5), ("LD", 0.2), ("none", 0.0))
    ]

    assert chance_of(some) == pytest.approx({"GU": 0.5, "LD": 0.2, "micro": 0.3, "macro": 0.35})
    assert chance_of(some[3:]) == {"micro": 0.0}


def test_families_come_in_the_order_of_their_dimensions(evaluation: list[Record]) -> None:
    some = [
        replace(evaluation[0], task=task, dimension=code, chance=chance)
        for task, code, chance in (("bare", "none", 0.0), ("x", "LD", 0.5), ("y", "GU", 0.2), ("x", "SC", 0.3))
    ]
    found = families(some)

    assert [(name, one.dimensions, one.n) for name, one in found.items()] == [
        ("y", ("GU",), 1), ("x", ("SC", "LD"), 2), ("bare", (), 1),
    ]  # fmt: skip
    assert found["x"].chance == pytest.approx(0.4)
