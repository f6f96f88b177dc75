from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from qmop.cost import Cost
from qmop.profiler import Profile
from qmop.vtcbench.records import Record
from qmop.vtcbench.report import Report, summarise, to_json, to_markdown


@pytest.fixture
def report(evaluation: list[Record]) -> Report:
    return summarise(evaluation, resamples=1000, provenance={"command": "qmop evaluate"})


def test_markdown_holds_every_row_with_its_figures(report: Report) -> None:
    text = to_markdown(report)
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}

    assert "| GU (n=8) | SC (n=8) |" in text
    for row in report.rows:
        low, high = 100 * row.micro.low, 100 * row.micro.high
        assert f"| {100 * row.micro.value:.1f} [{low:.1f}, {high:.1f}] |" in text
    assert "reference" in lines["uncompressed"]
    assert "| 144 |" in lines["uncompressed"]
    assert "40.6" in lines["*chance*"]
    assert "qmop evaluate" in text
    assert report.suite_digest[:12] in text


def test_markdown_tables_have_as_many_cells_as_heads(report: Report) -> None:
    odd = replace(report, rows=(replace(report.rows[0], label="a|b"), *report.rows[1:]))

    tables = [block for block in to_markdown(odd).split("\n\n") if block.startswith("|")]

    assert len(tables) == 4
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1


def test_markdown_says_what_is_missing_and_what_is_noise(evaluation: list[Record]) -> None:
    text = to_markdown(summarise(evaluation[:-2], resamples=1000))

    assert "uncompressed (lacks 2 items)" in text
    assert "below uncompressed (p" in text
    assert "within noise (p" in text or "above (p" in text or "below (p" in text


def test_loss_and_reverse_share_stand_side_by_side_with_their_floors(
    evaluation: list[Record], answered: Callable[..., list[Record]]
) -> None:
    second = answered("second", lambda i: i % 10 != 8, budget=144, method="uncompressed")
    text = to_markdown(summarise([*evaluation, *second], floor="second", resamples=100))
    head, _, *body = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")][
        :8
    ]
    place = head.index("information loss (floor 11.1)")  # 4 of the 36 that the first run has right

    assert head[place + 1] == "reverse share (floor 100.0)"  # all 4 that it misses
    rows = {cells[1]: cells for cells in body}
    right = {label: [r.right for r in evaluation if r.label == label] for label in ("uncompressed", "qmop@16")}
    pairs = list(zip(right["uncompressed"], right["qmop@16"], strict=True))
    assert rows["qmop@16"][place].startswith(f"{100 * pairs.count((True, False)) / 36:.1f} [")
    assert rows["qmop@16"][place + 1].startswith(f"{100 * pairs.count((False, True)) / 4:.1f} [")
    assert rows["uncompressed"][place : place + 2] == ["-", "-"]
    assert rows["second"][-2].startswith("second run of the reference: within noise of uncompressed")
    assert "The floor is what `second`, a second run of the reference, loses and gains." in text
    assert "names a second one" not in text


def test_a_report_without_a_floor_says_how_to_get_one(report: Report) -> None:
    assert "`qmop report --floor LABEL` names a second one" in to_markdown(report)


def test_what_was_unreadable_or_not_answered_is_told(evaluation: list[Record]) -> None:
    odd = [
        replace(r, parsable=i not in (41, 42), score=r.score * (i not in (41, 42))) for i, r in enumerate(evaluation)
    ]
    report = summarise(odd, resamples=100, unanswered={"qmop@16": {odd[41].key: "no\nmemory"}})
    text = to_markdown(report)

    assert "| qmop@16 (2 unreadable, 1 not answered) |" in text
    assert f"| qmop@16 | 1 | {odd[41].key} (no memory) |" in text
    assert "not answered" not in to_markdown(summarise(odd, resamples=100))


def test_sources_stand_apart_in_a_natural_suite(evaluation: list[Record], report: Report) -> None:
    natural = [replace(record, task="gqa" if i % 2 else "textvqa") for i, record in enumerate(evaluation)]
    found = summarise(natural, resamples=50)
    text = to_markdown(found)

    assert "| row | textvqa (n=20) | gqa (n=20) | mean retention |" in text
    assert f"| {100 * found.rows[1].mean_retention:.1f} |" in text  # type: ignore[operator]
    assert json.loads(to_json(found))["sources"] == {"gqa": 20, "textvqa": 20}
    assert "mean retention" not in to_markdown(report)


def test_levels_stand_apart_where_there_are_several(evaluation: list[Record], report: Report) -> None:
    levelled = [replace(record, level="hard" if i % 4 else "core") for i, record in enumerate(evaluation)]
    parts = to_markdown(summarise(levelled, resamples=100)).split("\n\n")
    table = parts[parts.index("Accuracy by level:") + 1].splitlines()

    assert table[0] == "| row | core (n=10) | hard (n=30) |"
    assert len(table) == 2 + 4 + 1
    assert "over the items of all levels" in " ".join(parts)
    assert "level" not in to_markdown(report)


def test_cost_and_times_stand_on_the_row(evaluation: list[Record], cost: Cost, measured: Profile) -> None:
    report = summarise(evaluation, resamples=50, costs={"qmop@16": cost}, profiles={"qmop@16": measured})
    lines = [line for line in to_markdown(report).splitlines() if line.startswith("|")]
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")] for line in lines[:7]}
    place = rows["row"].index("LLM GMAC")

    heads = ["LLM GMAC", "KV MB", "method GMAC", "prefill, ms", "first token, ms", "decode, per token, ms"]
    assert rows["row"][place : place + 6] == heads
    assert rows["qmop@16"][place : place + 6] == ["22", "8.4", "1.5", "1.5", "0.5", "0.5"]
    assert rows["blind"][place : place + 6] == ["-"] * 6
    assert len({len(cells) for cells in rows.values()}) == 1
    assert json.loads(to_json(report))["rows"][1]["cost"]["language"] == cost.language


def test_without_a_reference_nothing_is_compared(evaluation: list[Record]) -> None:
    text = to_markdown(summarise([r for r in evaluation if r.label == "qmop@16"], resamples=100))

    assert "no uncompressed row" in text
    assert "floor" not in text
    assert "exploratory" not in text


def test_items_without_a_dimension_make_a_table_of_micro_averages(evaluation: list[Record]) -> None:
    report = summarise([replace(record, dimension="") for record in evaluation], resamples=100)

    assert "items without a dimension" in to_markdown(report)
    assert json.loads(to_json(report))["rows"][0]["macro"] is None


def test_json_is_strict_and_holds_unrounded_figures(report: Report) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(to_json(report), parse_constant=refuse)

    assert [row["label"] for row in found["rows"]] == [row.label for row in report.rows]
    assert found["rows"][1]["micro"]["low"] == report.rows[1].micro.low
    assert found["rows"][1]["against_reference"]["p_value"] == report.rows[1].against_reference.p_value  # type: ignore[union-attr]
    assert found["suite_digest"] == "suite-digest"
