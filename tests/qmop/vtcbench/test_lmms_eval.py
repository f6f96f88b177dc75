from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from qmop.vtcbench.lmms_eval import lmms_eval_files, to_lmms_eval
from qmop.vtcbench.records import Record
from qmop.vtcbench.summary import summarise


def test_results_and_samples_hold_one_row(evaluation: list[Record]) -> None:
    report = summarise(evaluation, resamples=500)
    results, lines = to_lmms_eval(report, evaluation, "qmop@16")
    by_task = {task: [json.loads(line) for line in text.splitlines()] for task, text in lines.items()}
    samples = [sample for members in by_task.values() for sample in members]
    row = report.row("qmop@16")
    assert row is not None

    assert results["results"]["vtcbench"]["acc,none"] == row.micro.value
    assert results["results"]["vtcbench_ld"]["acc,none"] == row.dimensions["LD"].value
    assert results["group_subtasks"]["vtcbench"] == [f"vtcbench_{code}" for code in ("gu", "sc", "rc", "se", "ld")]
    assert results["n-samples"]["vtcbench_gu"] == {"original": 8, "effective": 8}
    assert results["config"]["model_args"] == {"checkpoint": "digest-of-qmop@16", "tokens": 16}
    assert json.loads(json.dumps(results)) == results
    assert len(samples) == 40
    assert sum(sample["acc"] for sample in samples) / 40 == pytest.approx(row.micro.value)
    assert list(by_task) == results["group_subtasks"]["vtcbench"]
    for task, members in by_task.items():
        assert [sample["doc_id"] for sample in members] == list(range(8))
        assert {f"vtcbench_{sample['doc']['dimension'].lower()}" for sample in members} == {task}
        assert sum(sample["acc"] for sample in members) / 8 == pytest.approx(results["results"][task]["acc,none"])
    assert {"doc", "target", "input", "resps", "filtered_resps", "doc_hash"} <= set(samples[0])


def test_levels_stand_beside_the_group_s_accuracy(evaluation: list[Record]) -> None:
    records = [replace(record, level="hard" if i % 4 else "core") for i, record in enumerate(evaluation)]
    report = summarise(records, resamples=100)

    results, lines = to_lmms_eval(report, records, "qmop@16")

    assert results["results"]["vtcbench"]["acc_hard,none"] == report.rows[1].levels["hard"].value
    told = "".join(lines.values()).splitlines()
    assert {json.loads(line)["doc"]["level"] for line in told} == {"core", "hard"}


def test_standard_error_is_near_the_binomial_one(evaluation: list[Record]) -> None:
    results, _ = to_lmms_eval(summarise(evaluation), evaluation, "average_pool@16")
    found = results["results"]["vtcbench"]
    p = found["acc,none"]

    assert found["acc_stderr,none"] == pytest.approx((p * (1 - p) / 40) ** 0.5, rel=0.1)


def test_unreadable_answers_are_a_metric_of_task_and_group(evaluation: list[Record]) -> None:
    odd = [replace(r, parsable=False, score=0.0) if r.dimension == "LD" else r for r in evaluation]

    results, lines = to_lmms_eval(summarise(odd, resamples=100), odd, "qmop@16")

    found = {name: metrics["unparsable,none"] for name, metrics in results["results"].items()}
    assert found == {"vtcbench": 8 / 40, "vtcbench_ld": 1.0, **{f"vtcbench_{c}": 0.0 for c in ("gu", "sc", "rc", "se")}}
    assert results["higher_is_better"]["vtcbench_ld"] == {"acc": True, "unparsable": False}
    assert {json.loads(line)["unparsable"] for line in lines["vtcbench_ld"].splitlines()} == {1.0}
    assert {json.loads(line)["unparsable"] for line in lines["vtcbench_gu"].splitlines()} == {0.0}


def test_items_without_a_dimension_are_a_task_of_their_own(evaluation: list[Record]) -> None:
    records = [replace(r, dimension="none" if r.dimension in ("GU", "SC") else r.dimension) for r in evaluation]

    results, lines = to_lmms_eval(summarise(records, resamples=100), records, "qmop@16")

    tasks = [f"vtcbench_{code}" for code in ("rc", "se", "ld", "none")]
    assert list(results["results"]) == ["vtcbench", *tasks]
    assert list(lines) == tasks
    assert results["n-samples"]["vtcbench"] == {"original": 40, "effective": 40}
    assert results["n-samples"]["vtcbench_none"] == {"original": 16, "effective": 16}
    assert len(lines["vtcbench_none"].splitlines()) == 16


def test_files_are_named_and_dated_as_lmms_eval_names_them(evaluation: list[Record]) -> None:
    report, date = summarise(evaluation, resamples=100), datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)

    files = lmms_eval_files(report, evaluation, "qmop@16", date)

    tasks = [f"vtcbench_{code}" for code in ("gu", "sc", "rc", "se", "ld")]
    assert list(files) == ["20260304_050607_results.json", *(f"20260304_050607_samples_{task}.jsonl" for task in tasks)]
    results = json.loads(files["20260304_050607_results.json"])
    assert results["date"] == "20260304_050607"
    assert results["results"] == to_lmms_eval(report, evaluation, "qmop@16")[0]["results"]
    assert files == lmms_eval_files(report, evaluation, "qmop@16", date)


def test_unknown_labels_are_refused(evaluation: list[Record]) -> None:
    with pytest.raises(ValueError, match="label is 'x', the report has uncompressed"):
        to_lmms_eval(summarise(evaluation, resamples=100), evaluation, "x")
