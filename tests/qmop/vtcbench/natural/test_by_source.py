from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qmop.vtcbench.natural.by_source import mme_of, retention_over_sources, source_of
from qmop.vtcbench.records import Record
from tests.qmop.vtcbench.natural.test_mme_score import answered


@pytest.fixture
def record() -> Record:
    return answered("OCR", "a", ("yes",))[0]


def row(record: Record, scores: dict[str, list[float]]) -> dict[str, Record]:
    """Records of the sources' items, by key."""
    made: list[Any] = [
        replace(record, key=f"{task}-{i}", task=task, score=score)
        for task, column in scores.items()
        for i, score in enumerate(column)
    ]
    return {one.key: one for one in made}


@pytest.mark.parametrize(
    ("task", "dimension", "source"),
    [("mme/OCR", "LD", "mme"), ("gqa", "GU", "gqa"), ("seed/Instance Counting", "SC", "seed"), ("place", "SC", ""),
     ("gqa", "none", "")],
)  # fmt: skip
def test_a_source_is_told_by_the_task_of_an_item_with_a_dimension(
    record: Record, task: str, dimension: str, source: str
) -> None:
    assert source_of(replace(record, task=task, dimension=dimension)) == source


def test_retention_is_averaged_over_sources_not_items(record: Record) -> None:
    full = row(record, {"gqa": [1.0] * 10, "textvqa": [1.0, 0.0]})
    mine = row(record, {"gqa": [1.0] * 5 + [0.0] * 5, "textvqa": [1.0, 0.0]})

    assert retention_over_sources(full, mine) == pytest.approx((0.5 + 1.0) / 2)


def test_retention_is_over_the_items_that_both_have(record: Record) -> None:
    full = row(record, {"gqa": [1.0, 1.0, 0.0], "textvqa": [1.0]})
    mine = row(record, {"gqa": [1.0, 0.0]})

    assert retention_over_sources(full, mine) == pytest.approx(0.5)


def test_without_sources_or_with_nothing_to_retain_there_is_no_retention(record: Record) -> None:
    rendered = row(record, {"place": [1.0]})
    nothing = row(record, {"gqa": [0.0], "textvqa": [1.0]})

    assert retention_over_sources({}, rendered) is None
    assert retention_over_sources(rendered, rendered) is None
    assert retention_over_sources(nothing, nothing) is None


def test_mme_is_scored_where_there_are_items_of_it(record: Record) -> None:
    found = mme_of([*answered("OCR", "a", ("yes", "no")), replace(record, key="gqa-1", task="gqa")])

    assert found is not None
    assert (found.perception, found.best_perception, found.cognition) == (200.0, 200, 0)
    assert mme_of([replace(record, task="gqa")]) is None
