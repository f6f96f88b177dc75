"""Results in the layout that lmms-eval writes, so that its readers and dashboards take ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from qmop.vtcbench.records import Record
from qmop.vtcbench.report_types import Report, Row
from qmop.vtcbench.statistics import Estimate

GROUP = "vtcbench"


def to_lmms_eval(report: Report, records: Iterable[Record], label: str) -> tuple[dict[str, Any], str]:
    """One row of a report as an lmms-eval run.

    Args:
        report: made from the records.
        records: those of the label are taken.
        label: which row.

    Returns:
        The object of `<date>_results.json`, and the text of `<date>_samples_vtcbench.jsonl`.

    Raises:
        ValueError: if the report has no such row.
    """
    row = report.row(label)
    if row is None:
        raise ValueError(f"label is {label!r}, the report has {', '.join(row.label for row in report.rows)}")
    subtasks = {f"{GROUP}_{code.lower()}": estimate for code, estimate in row.dimensions.items()}
    macro = {"acc_macro,none": row.macro.value} if row.macro else {}
    levels = {f"acc_{level},none": estimate.value for level, estimate in row.levels.items()}
    results = {
        "results": {
            GROUP: {**_metrics(GROUP, row.micro), **macro, **levels},
            **{name: _metrics(name, estimate) for name, estimate in subtasks.items()},
        },
        "group_subtasks": {GROUP: list(subtasks)},
        "configs": {name: {"task": name, "metadata": {"suite": report.suite_digest}} for name in subtasks},
        "versions": dict.fromkeys(subtasks, report.suite_digest[:12]),
        "n-shot": dict.fromkeys(subtasks, 0),
        "higher_is_better": {name: {"acc": True} for name in (GROUP, *subtasks)},
        "n-samples": {name: {"original": e.n, "effective": e.n} for name, e in {GROUP: row.micro, **subtasks}.items()},
        "config": _config(row, report),
        "task_hashes": dict.fromkeys(subtasks, report.suite_digest),
        "model_source": row.method,
        "model_name": row.label,
    }
    samples = [_sample(i, record) for i, record in enumerate(r for r in records if r.label == label)]
    return results, "".join(json.dumps(sample) + "\n" for sample in samples)


def _metrics(alias: str, estimate: Estimate) -> dict[str, Any]:
    """Accuracy with the standard error that its 95 % interval stands for."""
    error = (estimate.high - estimate.low) / (2 * 1.96)
    return {"alias": alias, "acc,none": estimate.value, "acc_stderr,none": error, "samples": estimate.n}


def _config(row: Row, report: Report) -> dict[str, Any]:
    return {
        "model": row.method,
        "model_args": {"checkpoint": row.checkpoint, "tokens": row.budget},
        "bootstrap_iters": report.resamples,
        "random_seed": report.seed,
        **report.versions,
    }


def _sample(index: int, record: Record) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "key": record.key,
        "question": record.question,
        "dimension": record.dimension,
        "task": record.task,
    }
    asked |= {"level": record.level, "difficulty": record.difficulty}
    return {
        "doc_id": index,
        "doc": asked,
        "target": record.answer,
        "input": record.question,
        "resps": [[record.prediction]],
        "filtered_resps": [record.prediction],
        "doc_hash": hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest(),
        "acc": record.score,
    }
