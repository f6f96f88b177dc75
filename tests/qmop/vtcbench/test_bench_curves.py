from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from qmop.vtcbench.curves import bins, difficulty_curves
from qmop.vtcbench.records import Record

Answered = Callable[..., list[Record]]


def test_few_values_have_a_stretch_each_and_many_share_five() -> None:
    assert bins([3, 1, 3, 2]) == [(1, 1), (2, 2), (3, 3)]
    assert bins(list(range(100))) == [(0, 19), (20, 39), (40, 59), (60, 79), (80, 99)]
    assert bins([0.0] * 90 + list(range(1, 11)), most=2) == [(0, 0), (1, 10)]


def _details(records: list[Record], level: str = "core") -> list[Record]:
    """Sizes 1 and 2 in turn, the small ones on easier questions."""
    return [
        replace(r, dimension="LD", task="mark", level=level, difficulty=1.0 + i % 2, chance=0.5 if i % 2 else 0.25)
        for i, r in enumerate(records)
    ]


def test_a_curve_tells_accuracy_chance_and_count_at_each_difficulty(answered: Answered) -> None:
    large_only = answered("pool", lambda i: i % 2 == 1)
    records = [*_details(large_only), *_details(answered("all", bool))[:20]]

    (curve,) = difficulty_curves(records, resamples=100)

    assert (curve.dimension, curve.unit) == ("LD", "patches across the detail")
    assert [point.difficulty for point in curve.points] == [1.0, 2.0]
    assert [point.chance for point in curve.points] == [0.25, 0.5]
    assert [point.accuracies["pool"].value for point in curve.points] == [0.0, 1.0]
    assert [point.accuracies["pool"].n for point in curve.points] == [20, 20]
    assert [point.accuracies["all"].n for point in curve.points] == [10, 10]


def test_dimensions_come_in_the_paper_s_order_and_units_apart(answered: Answered) -> None:
    found = [(curve.dimension, curve.unit) for curve in difficulty_curves(answered("a", bool), resamples=50)]

    assert found[:3] == [("GU", "objects on the other side"), ("GU", "other objects"), ("SC", "other objects")]
    assert [dimension for dimension, _ in found] == sorted(
        (dimension for dimension, _ in found), key=["GU", "SC", "RC", "SE", "LD"].index
    )


def test_points_hold_no_handful_of_items(answered: Answered) -> None:
    records = [replace(r, dimension="SC", task="place", difficulty=float(i)) for i, r in enumerate(answered("a", bool))]

    (curve,) = difficulty_curves(records, resamples=50)

    assert [(point.low, point.high) for point in curve.points] == [(0, 19), (20, 39)]
    assert curve.points[0].difficulty == pytest.approx(9.5)


def test_held_out_items_and_those_without_a_difficulty_make_no_curve(answered: Answered) -> None:
    records = answered("a", bool)

    assert difficulty_curves(_details(records, "held_out"), resamples=50) == ()
    assert difficulty_curves([replace(r, difficulty=None) for r in records], resamples=50) == ()
    assert difficulty_curves([replace(r, difficulty=2.0) for r in records], resamples=50) == ()
