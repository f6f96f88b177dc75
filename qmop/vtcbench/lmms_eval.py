"""Results in the layout that lmms-eval writes, so that its readers and dashboards take ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from qmop.vtcbench.items import DIMENSIONS, UNLABELLED
from qmop.vtcbench.records import Record
from qmop.vtcbench.report_types import Report, Row
from qmop.vtcbench.statistics import accuracy

GROUP = "vtcbench"
DATE_FORMAT = "%Y%m%d_%H%M%S"
"""Of lmms-eval's file names."""


def lmms_eval_files(report: Report, records: Iterable[Record], label: str, date: datetime) -> dict[str, str]:
    """One row of a report as the files that lmms-eval would leave in a model's folder.

    Args:
        report: made from the records.
        records: those of the label are taken.
        label: which row.
        date: of the evaluation, which lmms-eval puts before every file's name.

    Returns:
        Texts by file name: `<date>_results.json`, and `<date>_samples_<task>.jsonl` of each task.

    Raises:
        ValueError: if the report has no such row.
    """
    results, samples = to_lmms_eval(report, records, label)
    stamp = date.strftime(DATE_FORMAT)
    files = {f"{stamp}_results.json": json.dumps({**results, "date": stamp}, indent=1)}
    return files | {f"{stamp}_samples_{task}.jsonl": lines for task, lines in samples.items()}


def to_lmms_eval(report: Report, records: Iterable[Record], label: str) -> tuple[dict[str, Any], dict[str, str]]:
    """One row of a report as an lmms-eval run: a group of one task per dimension.

    Items without a dimension are a task of their own, as in the tasks that `qmop suite lmms` writes.

    Args:
        report: made from the records.
        records: those of the label are taken.
        label: which row.

    Returns:
        The object of the results file, and the text of the samples file by task.

    Raises:
        ValueError: if the report has no such row.
    """
    row = report.row(label)
    if row is None:
        raise ValueError(f"label is {label!r}, the report has {', '.join(row.label for row in report.rows)}")
    tasks = _by_task([record for record in records if record.label == label])
    metrics = {name: _metrics(name, members, report) for name, members in tasks.items()}
    everything = [record for members in tasks.values() for record in members]
    macro = {"acc_macro,none": row.macro.value} if row.macro else {}
    levels = {f"acc_{level},none": estimate.value for level, estimate in row.levels.items()}
    counts = {GROUP: len(everything), **{name: len(members) for name, members in tasks.items()}}
    results = {
        "results": {GROUP: {**_metrics(GROUP, everything, report), **macro, **levels}, **metrics},
        "group_subtasks": {GROUP: list(tasks)},
        "configs": {name: {"task": name, "metadata": {"suite": report.suite_digest}} for name in tasks},
        "versions": dict.fromkeys(tasks, report.suite_digest[:12]),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {name: {"acc": True, "unparsable": False} for name in (GROUP, *tasks)},
        "n-samples": {name: {"original": count, "effective": count} for name, count in counts.items()},
        "config": _config(row, report),
        "task_hashes": dict.fromkeys(tasks, report.suite_digest),
        "model_source": row.method,
        "model_name": row.label,
    }
    return results, {name: _lines(members) for name, members in tasks.items()}


def _by_task(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by task, in the order of the dimensions."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.dimension if record.dimension in DIMENSIONS else UNLABELLED, []).append(record)
    return {f"{GROUP}_{code.lower()}": groups[code] for code in (*DIMENSIONS, UNLABELLED) if code in groups}


def _metrics(alias: str, records: Sequence[Record], report: Report) -> dict[str, Any]:
    """Accuracy and share of unreadable answers, with the standard errors that their 95 % intervals stand for."""
    columns = {
        "acc": [record.score for record in records],
        "unparsable": [float(not record.parsable) for record in records],
    }
    found: dict[str, Any] = {"alias": alias, "samples": len(records)}
    for name, values in columns.items():
        estimate = accuracy(values, report.seed, report.resamples)
        found[f"{name},none"] = estimate.value
        found[f"{name}_stderr,none"] = (estimate.high - estimate.low) / (2 * 1.96)
    return found


def _config(row: Row, report: Report) -> dict[str, Any]:
    return {
        "model": row.method,
        "model_args": {"checkpoint": row.checkpoint, "tokens": row.budget},
        "bootstrap_iters": report.resamples,
        "random_seed": report.seed,
        **report.versions,
    }


def _lines(records: Iterable[Record]) -> str:
    return "".join(json.dumps(_sample(index, record)) + "\n" for index, record in enumerate(records))


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
        "unparsable": float(not record.parsable),
    }
