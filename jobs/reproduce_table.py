"""The paper's Table 1: what it prints, what the harness measured, and the averages of both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmop.vtcbench.statistics import mean_retention


@dataclass(frozen=True, kw_only=True)
class Column:
    """One benchmark.

    Attributes:
        title: as the paper heads it.
        task: lmms-eval's name.
        metrics: lmms-eval's names of the score, of which releases use one or the other.
        scale: from the harness's number to the paper's.
    """

    title: str
    task: str
    metrics: tuple[str, ...]
    scale: float = 100.0


COLUMNS = (
    Column(title="TextVQA", task="textvqa_val", metrics=("exact_match",)),
    Column(title="POPE", task="pope", metrics=("pope_f1_score",)),
    Column(title="VQAv2", task="vqav2_val", metrics=("exact_match",)),
    Column(title="MM-Vet", task="mmvet", metrics=("gpt_eval_score",), scale=1.0),
    Column(title="GQA", task="gqa", metrics=("exact_match",)),
    Column(title="MME", task="mme", metrics=("mme_perception_score", "mme_percetion_score"), scale=1.0),
    Column(title="MMB", task="mmbench_en_dev", metrics=("gpt_eval_score", "submission"), scale=1.0),
    Column(title="Seed-I", task="seedbench", metrics=("seed_image",)),
    Column(title="MMStar", task="mmstar", metrics=("average",)),
    Column(title="MMMU", task="mmmu_val", metrics=("mmmu_acc",)),
)
"""In the paper's order. VQAv2 is its validation part, since the test part's answers are not public."""

VANILLA = "vanilla"
PRINTED: dict[str, tuple[float, ...]] = {
    VANILLA: (58.2, 85.9, 78.5, 31.6, 62.0, 1511, 64.3, 66.1, 31.9, 34.6),
    "tokenpacker-7b": (57.0, 87.0, 77.9, 33.0, 61.9, 1454, 65.0, 65.1, 32.6, 34.3),
    "llava-7b": (57.1, 87.7, 78.1, 33.3, 62.0, 1456, 64.8, 66.0, 33.1, 35.1),
}
"""The paper's rows for 7B, uncompressed and at 144 tokens."""

Scores = dict[str, float]


def read_scores(folder: Path) -> Scores:
    """Scores by title out of an lmms-eval output folder; of several runs the latest.

    Raises:
        FileNotFoundError: if there is no result.
        ValueError: if a benchmark is missing.
    """
    files = sorted(folder.rglob("*results.json"), key=lambda path: (path.stat().st_mtime, path.name))
    if not files:
        raise FileNotFoundError(f"{folder} holds no results of lmms-eval: delete the folder, so that it runs again")
    results: dict[str, Any] = json.loads(files[-1].read_text(encoding="utf-8"))["results"]
    return {column.title: column.scale * _score(results, column, files[-1]) for column in COLUMNS}


def printed(name: str) -> Scores | None:
    """The paper's row of a method, if it has one."""
    row = PRINTED.get(name)
    return None if row is None else {column.title: value for column, value in zip(COLUMNS, row, strict=True)}


def table(measured: Mapping[str, Scores]) -> str:
    """Measured and printed rows in Markdown; averages refer to the uncompressed row of the same origin."""
    head = ["method", *(column.title for column in COLUMNS), "Avg %"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    theirs = printed(VANILLA)
    assert theirs is not None
    for name, scores in measured.items():
        lines.append(_line(name, scores, measured[VANILLA]))
        if (row := printed(name)) is not None:
            lines.append(_line(f"{name}, as printed", row, theirs))
    return "\n".join(lines) + "\n"


def _score(results: dict[str, Any], column: Column, source: Path) -> float:
    found = results.get(column.task, {})
    for metric in column.metrics:
        for name, value in found.items():
            if name.split(",")[0] == metric and isinstance(value, int | float):
                return float(value)
    raise ValueError(
        f"{source} has no {' or '.join(column.metrics)} of {column.task}: run that task alone and look what failed "
        "(MM-Vet and MMBench ask a judge, whose key lmms-eval takes from OPENAI_API_KEY)"
    )


def _line(name: str, row: Mapping[str, float], vanilla: Mapping[str, float]) -> str:
    cells = [f"{row[column.title]:.0f}" if column.title == "MME" else f"{row[column.title]:.1f}" for column in COLUMNS]
    return f"| {name} | {' | '.join(cells)} | {mean_retention(row, vanilla):.2f} |"
