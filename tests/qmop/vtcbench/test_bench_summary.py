from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qmop.vtcbench.records import Record
from qmop.vtcbench.report_types import Report, Row, verdict
from qmop.vtcbench.statistics import compare
from qmop.vtcbench.summary import summarise


@pytest.fixture
def report(evaluation: list[Record]) -> Report:
    return summarise(evaluation, seed=3, resamples=2000)


def _row(report: Report, label: str) -> Row:
    row = report.row(label)
    assert row is not None
    return row


def test_the_reference_comes_first_and_the_blind_row_last(report: Report) -> None:
    assert [row.label for row in report.rows] == ["uncompressed", "qmop@16", "average_pool@16", "blind"]


def test_accuracies_and_counts_are_those_of_the_records(report: Report, evaluation: list[Record]) -> None:
    for row in report.rows:
        mine = [record for record in evaluation if record.label == row.label]
        assert row.micro.value == pytest.approx(np.mean([record.score for record in mine]))
        assert row.micro.n == 40
        for code, estimate in row.dimensions.items():
            scores = [record.score for record in mine if record.dimension == code]
            assert estimate.value == pytest.approx(np.mean(scores))
            assert estimate.n == 8
        assert row.macro is not None
        assert row.macro.value == pytest.approx(np.mean([e.value for e in row.dimensions.values()]))
        assert set(row.tasks) == {record.task for record in mine}
    assert dict(report.counts) == dict.fromkeys(["GU", "SC", "RC", "SE", "LD"], 8)


def test_chance_is_that_of_the_items(report: Report) -> None:
    answers = {"GU": (5, 6, 5, 4), "SC": (4, 9, 2, 5), "RC": (2, 2, 2, 2), "SE": (4, 4, 4, 4), "LD": (10, 8, 4, 4)}
    chance = {name: np.mean([1 / count for count in counts]) for name, counts in answers.items()}
    everything = np.mean(list(chance.values()))
    assert dict(report.chance) == pytest.approx({**chance, "micro": everything, "macro": everything})


def test_rows_are_held_against_reference_and_blind(report: Report, evaluation: list[Record]) -> None:
    right = {
        label: {r.key for r in evaluation if r.label == label and r.right} for label in ("uncompressed", "qmop@16")
    }
    row = _row(report, "qmop@16")
    assert row.against_reference is not None
    assert row.against_reference.loss is not None
    assert row.against_reference.retention is not None
    assert row.visual_gain is not None

    lost = right["uncompressed"] - right["qmop@16"]
    assert row.against_reference.loss.value == pytest.approx(len(lost) / 36)
    assert row.against_reference.retention.value == pytest.approx(len(right["qmop@16"]) / 36)
    assert row.visual_gain.value == pytest.approx(row.micro.value - 8 / 40)
    assert _row(report, "uncompressed").against_reference is None
    assert _row(report, "blind").visual_gain is None


def test_only_rows_of_one_budget_are_paired(report: Report, answered: Callable[..., list[Record]]) -> None:
    assert [(pair.base, pair.other) for pair in report.pairs] == [("qmop@16", "average_pool@16")]
    more = [*answered("a", bool), *answered("b", bool), *answered("c", bool, budget=36)]
    assert [(pair.base, pair.other) for pair in summarise(more, resamples=100).pairs] == [("a", "b")]


def test_branch_weights_are_averaged_by_dimension(answered: Callable[..., list[Record]]) -> None:
    weights = {"GU": (1.0, 0.0, 0.0), "LD": (0.0, 0.0, 1.0)}
    records = [
        replace(record, branch_weights=weights.get(record.dimension, (0.25, 0.5, 0.25)))
        for record in answered("qmop", bool)
    ]

    found = summarise(records, resamples=100).rows[0].branch_weights

    assert list(found) == ["GU", "SC", "RC", "SE", "LD", "all"]
    assert found["LD"] == {"resampler": 0.0, "window_pool": 0.0, "prune": 1.0}
    assert found["all"]["resampler"] == pytest.approx((1 + 0 + 3 * 0.25) / 5)
    four = [replace(record, branch_weights=(0.25,) * 4) for record in records]
    assert list(summarise(four, resamples=100).rows[0].branch_weights["all"]) == [f"branch {i}" for i in (1, 2, 3, 4)]


def test_rows_without_a_router_have_no_weights(report: Report) -> None:
    assert _row(report, "average_pool@16").branch_weights == {}


def test_missing_items_and_unreadable_answers_are_counted(answered: Callable[..., list[Record]]) -> None:
    odd = [
        replace(record, parsable=False, score=0.0) if i < 3 else record for i, record in enumerate(answered("b", bool))
    ]

    report = summarise([*answered("a", bool), *odd[:-5]], reference="a", resamples=100)

    row = _row(report, "b")
    assert (row.missing, row.unparsable, row.micro.n) == (5, 3, 35)
    assert row.against_reference is not None
    assert row.against_reference.difference.n == 35


def test_visual_tokens_that_vary_are_told_with_their_span(answered: Callable[..., list[Record]]) -> None:
    records = [replace(record, visual_tokens=10 + i % 3) for i, record in enumerate(answered("prune", bool))]

    row = summarise(records, resamples=100).rows[0]

    assert row.tokens_span == (10, 12)
    assert row.visual_tokens == pytest.approx(np.mean([10 + i % 3 for i in range(40)]))


def test_items_without_a_dimension_count_in_the_micro_average_alone(answered: Callable[..., list[Record]]) -> None:
    some = [replace(r, dimension="" if i % 2 else r.dimension) for i, r in enumerate(answered("a", lambda i: i < 20))]
    none = [replace(record, dimension="") for record in some]

    mixed, bare = summarise(some, resamples=100), summarise(none, resamples=100)

    assert (mixed.items, sum(mixed.counts.values()), mixed.rows[0].micro.n) == (40, 20, 40)
    assert mixed.rows[0].macro is not None
    assert mixed.rows[0].macro.n == 20
    assert bare.rows[0].macro is None
    assert bare.rows[0].micro.value == 0.5
    assert set(bare.chance) == {"micro"}


def test_equal_input_gives_an_equal_report(evaluation: list[Record], report: Report) -> None:
    assert summarise(evaluation, seed=3, resamples=2000) == report
    assert summarise(evaluation, seed=4, resamples=2000) != report


def test_a_verdict_claims_no_more_than_the_test() -> None:
    answers = [1.0] * 100

    close = compare(answers, [0.0] * 4 + [1.0] * 96)
    apart = compare(answers, [0.0] * 40 + [1.0] * 60)

    assert verdict(close, "base") == "within noise of base (p = 0.125)"
    assert verdict(apart, "base") == "below base (p < 0.001)"
    assert verdict(compare(answers[:50] + [0.0] * 50, answers)) == "above (p < 0.001)"


def test_records_that_do_not_belong_together_are_refused(evaluation: list[Record]) -> None:
    first = evaluation[0]
    for records, words in [
        ([], "no records to report on"),
        ([*evaluation, first], "label 'blind' has two records of item"),
        ([*evaluation, replace(first, key="new", suite_digest="other")], "come from 2 suites"),
        ([*evaluation, replace(first, key="new", checkpoint="other")], "label 'blind' names several checkpoints"),
    ]:
        with pytest.raises(ValueError, match=words):
            summarise(records, resamples=100)
