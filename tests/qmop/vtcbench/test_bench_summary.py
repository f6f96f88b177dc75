from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qmop.cost import Cost
from qmop.profiler import Profile
from qmop.vtcbench.items import DIMENSIONS
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
    answers = {"GU": (5, 6, 5, 4), "SC": (4, 9, 2, 5), "RC": (2, 8, 2, 2), "SE": (4, 4, 4, 4), "LD": (10, 8, 4, 4)}
    chance = {name: np.mean([1 / count for count in counts]) for name, counts in answers.items()}
    everything = np.mean(list(chance.values()))
    assert dict(report.chance) == pytest.approx({**chance, "micro": everything, "macro": everything})


def test_levels_are_told_apart_where_there_are_several(answered: Callable[..., list[Record]]) -> None:
    names = ("held_out", "core", "core", "hard")
    known = {"held_out": (0,), "core": (1, 2, 5, 6), "hard": (3, 7, 11)}
    records = [
        replace(record, level=names[i % 4], score=float(i in known[names[i % 4]]))
        for i, record in enumerate(answered("a", bool))
    ]

    report = summarise(records, resamples=100)
    (row,) = report.rows

    assert list(report.levels.items()) == [("core", 20), ("hard", 10), ("held_out", 10)]
    assert {name: (estimate.value, estimate.n) for name, estimate in row.levels.items()} == {
        "core": (0.2, 20),
        "hard": (0.3, 10),
        "held_out": (0.1, 10),
    }
    hard = [record.chance for record in records if record.level == "hard"]
    assert report.level_chance["hard"] == pytest.approx(np.mean(hard))
    assert row.micro.value == pytest.approx(8 / 40)
    assert sum(estimate.n for estimate in row.dimensions.values()) == 40


def test_one_level_alone_is_not_told_apart(report: Report) -> None:
    assert dict(report.levels) == {"core": 40}
    assert all(row.levels == {} for row in report.rows)


def test_costs_and_times_stand_with_their_row(evaluation: list[Record], cost: Cost, measured: Profile) -> None:
    report = summarise(evaluation, resamples=50, costs={"qmop@16": cost}, profiles={"uncompressed": measured})

    assert [row.cost for row in report.rows] == [None, cost, None, None]
    assert [row.profile for row in report.rows] == [measured, None, None, None]


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


def test_loss_and_reverse_share_have_denominators_of_their_own(report: Report, evaluation: list[Record]) -> None:
    right = {label: {r.key for r in evaluation if r.label == label and r.right} for label in ("uncompressed", "blind")}
    found = _row(report, "blind").against_reference
    assert found is not None
    assert found.loss is not None
    assert found.gain is not None

    assert (found.loss.n, found.gain.n) == (36, 4)
    assert found.loss.value == pytest.approx(len(right["uncompressed"] - right["blind"]) / 36)
    assert found.gain.value == pytest.approx(len(right["blind"] - right["uncompressed"]) / 4)


def test_the_floor_is_what_two_runs_of_the_reference_lose_to_each_other(
    evaluation: list[Record], answered: Callable[..., list[Record]]
) -> None:
    second = answered("second", lambda i: i % 10 != 8, budget=144, method="uncompressed")
    others = answered("other", lambda i: i % 2 == 0, budget=144)
    report = summarise([*evaluation, *others, *second], floor="second", resamples=100)

    assert [row.label for row in report.rows[:2]] == ["uncompressed", "second"]
    assert report.floors is not None
    assert report.floors.loss is not None
    assert (report.floors.loss.value, report.floors.loss.n) == (pytest.approx(4 / 36), 36)
    assert {"second", "uncompressed"}.isdisjoint(name for pair in report.pairs for name in (pair.base, pair.other))
    assert summarise(evaluation, resamples=100).floors is None


def test_a_floor_that_is_no_second_run_of_the_reference_is_refused(
    evaluation: list[Record], answered: Callable[..., list[Record]]
) -> None:
    same = answered("again", bool, budget=144, method="uncompressed", checkpoint="digest-of-uncompressed")
    for floor, records, words in [
        ("nosuch", evaluation, "floor is 'nosuch', held against 'uncompressed', but there are no records of 'nosuch'"),
        ("blind", [r for r in evaluation if r.label == "blind"], "there are no records of 'uncompressed'"),
        ("uncompressed", evaluation, "floor is 'uncompressed', which is the same checkpoint as 'uncompressed'"),
        ("again", [*evaluation, *same], "floor is 'again', which is the same checkpoint as 'uncompressed'"),
        ("qmop@16", evaluation, "floor is 'qmop@16', qmop of 16 tokens, but 'uncompressed' is uncompressed of 144"),
    ]:
        with pytest.raises(ValueError, match=f"{words}.*name a second training run"):
            summarise(records, floor=floor, resamples=100)


def test_task_families_have_dimension_count_and_chance(report: Report, evaluation: list[Record]) -> None:
    assert list(report.tasks)[:4] == ["main_shape", "common_colour", "common_shape", "busy_side"]
    assert [family.dimensions for family in report.tasks.values()] == [(code,) for code in DIMENSIONS for _ in range(4)]
    assert {family.n for family in report.tasks.values()} == {2}
    assert report.tasks["place"].chance == pytest.approx(1 / 9)
    mixed = [replace(r, dimension="GU" if i % 2 else "LD", task="t") for i, r in enumerate(evaluation)]
    assert summarise(mixed, resamples=100).tasks["t"].dimensions == ("GU", "LD")
    bare = summarise([replace(record, dimension="none") for record in evaluation], resamples=100)
    assert {family.dimensions for family in bare.tasks.values()} == {()}


def test_items_that_could_not_be_answered_stand_with_their_row(evaluation: list[Record]) -> None:
    report = summarise(evaluation, resamples=100, unanswered={"qmop@16": {"k": "no memory"}})

    assert [dict(row.unanswered) for row in report.rows] == [{}, {"k": "no memory"}, {}, {}]


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


_PAPER_COUNTS = (278, 230, 255, 300, 292)
_PAPER_ROWS = [
    ((56.1, 47.4, 65.9, 72.0, 60.9), 61.0),
    ((54.7, 46.1, 64.3, 74.7, 54.9), 59.5),
    ((53.6, 47.0, 61.2, 70.0, 55.3), 57.9),
    ((53.2, 47.8, 59.6, 70.3, 55.2), 57.7),
    ((55.8, 47.8, 64.7, 74.0, 57.5), 60.5),
    ((56.8, 48.3, 63.9, 74.3, 56.4), 60.5),
    ((54.7, 43.5, 59.6, 70.7, 58.3), 58.0),
    ((57.2, 48.6, 64.7, 75.0, 60.6), 61.8),
]


@pytest.mark.parametrize(("accuracies", "printed"), _PAPER_ROWS)
def test_the_average_of_the_paper_s_third_table_is_the_report_s_micro_average(
    accuracies: tuple[float, ...], printed: float, answered: Callable[..., list[Record]]
) -> None:
    first = answered("row", bool)[0]
    records = [
        replace(first, key=f"{code}-{i}", dimension=code, score=share / 100)
        for code, share, count in zip(DIMENSIONS, accuracies, _PAPER_COUNTS, strict=True)
        for i in range(count)
    ]

    row = summarise(records, resamples=2).rows[0]

    assert [100 * estimate.value for estimate in row.dimensions.values()] == pytest.approx(accuracies)
    assert 100 * row.micro.value == pytest.approx(printed, abs=0.1)


def natural(answered: Callable[..., list[Record]], label: str, right: dict[str, int], **facts: object) -> list[Record]:
    """Ten items of each source, the first few of which are right."""
    records = answered(label, bool, **facts)
    return [
        replace(records[10 * place + i], task=source, dimension="GU", score=float(i < count))
        for place, (source, count) in enumerate(right.items())
        for i in range(10)
    ]


def test_natural_sources_have_accuracy_and_their_mean_retention(answered: Callable[..., list[Record]]) -> None:
    full = natural(answered, "uncompressed", {"gqa": 10, "seed/counting": 5, "textvqa": 8}, budget=144)
    mine = natural(answered, "qmop", {"gqa": 9, "seed/counting": 5, "textvqa": 4})
    report = summarise([*full, *mine], resamples=50)
    first, second = report.rows

    assert report.sources == {"gqa": 10, "seed": 10, "textvqa": 10}
    assert {name: (e.value, e.n) for name, e in second.sources.items()} == {
        "gqa": (0.9, 10), "seed": (0.5, 10), "textvqa": (0.4, 10),
    }  # fmt: skip
    assert second.mean_retention == pytest.approx((0.9 + 1.0 + 0.5) / 3)
    assert first.mean_retention is None
    assert first.mme is None
    rendered = summarise(answered("uncompressed", bool), resamples=50)
    assert (rendered.sources, rendered.rows[0].sources) == ({}, {})
