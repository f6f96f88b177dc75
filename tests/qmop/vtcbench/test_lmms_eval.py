from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qmop.vtcbench.lmms_eval import to_lmms_eval
from qmop.vtcbench.records import Record
from qmop.vtcbench.summary import summarise


def test_results_and_samples_hold_one_row(evaluation: list[Record]) -> None:
    report = summarise(evaluation, resamples=500)
    results, lines = to_lmms_eval(report, evaluation, "qmop@16")
    samples = [json.loads(line) for line in lines.splitlines()]
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
    assert {sample["doc_id"] for sample in samples} == set(range(40))
    assert {"doc", "target", "input", "resps", "filtered_resps", "doc_hash"} <= set(samples[0])


def test_levels_stand_beside_the_group_s_accuracy(evaluation: list[Record]) -> None:
    records = [replace(record, level="hard" if i % 4 else "core") for i, record in enumerate(evaluation)]
    report = summarise(records, resamples=100)

    results, lines = to_lmms_eval(report, records, "qmop@16")

    assert results["results"]["vtcbench"]["acc_hard,none"] == report.rows[1].levels["hard"].value
    assert {json.loads(line)["doc"]["level"] for line in lines.splitlines()} == {"core", "hard"}


def test_standard_error_is_near_the_binomial_one(evaluation: list[Record]) -> None:
    results, _ = to_lmms_eval(summarise(evaluation), evaluation, "average_pool@16")
    found = results["results"]["vtcbench"]
    p = found["acc,none"]

    assert found["acc_stderr,none"] == pytest.approx((p * (1 - p) / 40) ** 0.5, rel=0.1)


def test_items_without_a_dimension_have_the_group_alone(evaluation: list[Record]) -> None:
    records = [replace(record, dimension="") for record in evaluation]

    results, _ = to_lmms_eval(summarise(records, resamples=100), records, "qmop@16")

    assert list(results["results"]) == ["vtcbench"]
    assert results["n-samples"] == {"vtcbench": {"original": 40, "effective": 40}}


def test_unknown_labels_are_refused(evaluation: list[Record]) -> None:
    with pytest.raises(ValueError, match="label is 'x', the report has uncompressed"):
        to_lmms_eval(summarise(evaluation, resamples=100), evaluation, "x")
