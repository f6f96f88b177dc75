from __future__ import annotations

from dataclasses import replace

import pytest

from qmop.vtcbench.records import Record
from qmop.vtcbench.report_tables import asides, named, source_table, table, task_table, unanswered_table
from qmop.vtcbench.summary import summarise


def test_a_cell_is_text_of_one_line() -> None:
    assert table(["a", "b"], [["x|y", "two\n lines"]]) == "| a | b |\n| --- | --- |\n| x\\|y | two lines |"


def test_only_what_is_amiss_stands_beside_a_row(evaluation: list[Record]) -> None:
    row = summarise(evaluation, resamples=50).rows[0]

    assert asides(row) == []
    odd = replace(row, missing=1, unparsable=2, unanswered={"k": "w", "l": "w", "m": "w"})
    assert asides(odd) == ["lacks 1 items", "2 unreadable", "3 not answered"]


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, ""), (1, "k0 (w)"), (3, "k0 (w); k1 (w); k2 (w)"), (4, "k0 (w); k1 (w); k2 (w); and 1 more")],
)
def test_the_first_few_items_are_named(count: int, told: str) -> None:
    assert named({f"k{i}": "w" for i in range(count)}) == told


def test_a_long_reason_is_cut(evaluation: list[Record]) -> None:
    assert named({"k": "x" * 300}) == f"k ({'x' * 120} ...)"
    assert named({"k": "two\nlines"}) == "k (two lines)"
    row = replace(summarise(evaluation, resamples=50).rows[0], unanswered={"k": "x" * 300})
    assert unanswered_table([row]).splitlines()[-1] == f"| uncompressed | 1 | k ({'x' * 120} ...) |"


def test_sources_have_accuracy_mean_retention_and_mme_s_own_score(evaluation: list[Record]) -> None:
    tasks = ["mme/OCR", "mme/OCR", "gqa", "gqa"]
    records = [
        replace(record, key=f"{task}-p_{i % 2}", task=task, score=score)
        for label, scores in (("uncompressed", (1.0, 1.0, 1.0, 1.0)), ("qmop@16", (1.0, 0.0, 1.0, 1.0)))
        for i, (task, score) in enumerate(zip(tasks, scores, strict=True))
        for record in [next(one for one in evaluation if one.label == label)]
    ]

    assert source_table(summarise(records, resamples=50)).splitlines() == [
        "| row | mme (n=2) | gqa (n=2) | mean retention | MME perception | MME cognition |",
        "| --- | --- | --- | --- | --- | --- |",
        "| uncompressed | 100.0 | 100.0 | - | 200.0 of 200 | - |",
        "| qmop@16 | 50.0 | 100.0 | 75.0 | 50.0 of 200 | - |",
    ]


def test_families_have_chance_count_and_a_column_per_row(evaluation: list[Record]) -> None:
    missing = [record for record in evaluation if record.label != "blind" or record.task != "place"]
    lines = task_table(summarise(missing, resamples=50)).splitlines()
    right = [100 * r.score for r in evaluation if r.label == "qmop@16" and r.task == "place"]

    assert lines[0] == "| task | dimension | n | chance | uncompressed | qmop@16 | average_pool@16 | blind |"
    assert len(lines) == 2 + 20
    place = [cell.strip() for cell in next(line for line in lines if "| place |" in line).split("|")[1:-1]]
    assert place[:4] == ["place", "SC", "2", "11.1"]
    assert place[5] == f"{sum(right) / 2:.1f}"
    assert place[-1] == "-"
