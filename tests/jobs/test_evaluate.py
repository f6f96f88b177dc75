"""What the job says about a result; the evaluation itself is another's test."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.progress import Progress
from jobs import evaluate as job
from pipelines.evaluation.recipe import EvaluateRecipe
from pipelines.evaluation.runner import EvaluateResult
from qmop.vtcbench.suite import SuiteManifest

SUITE = SuiteManifest(folder="s", digest="d", seed=0, count=4, items_per_shard=4, dimensions={}, probe="", shards=())
RESULT = EvaluateResult(records=(), planned=2, done=1, reused=1, failed={}, suite=SUITE, units=())


def said(result: EvaluateResult, store: Path, monkeypatch: pytest.MonkeyPatch, replaced: tuple[str, ...] = ()) -> str:
    monkeypatch.setattr(job, "evaluate", lambda *_: result)
    monkeypatch.setattr(job, "write_index", lambda *_, **__: replaced)
    out = io.StringIO()
    job.run(EvaluateRecipe(checkpoints=["tiny"], output=str(store)), Progress(stream=out))
    return out.getvalue()


def test_what_was_replaced_in_the_report_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = said(RESULT, tmp_path, monkeypatch, replaced=("a", "b"))
    assert "the report now shows this evaluation of a, b, and not an earlier one" in told
    assert "the report now shows" not in said(replace(RESULT, reused=1), tmp_path, monkeypatch)


def test_answers_that_were_cut_are_counted_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = said(replace(RESULT, cut={"a": 3, "b": 2}), tmp_path, monkeypatch)
    assert "5 of 0 answers had not come to an end" in told
    assert "(3 of a, 2 of b): allow more with --max_new_tokens" in told
    assert "max_new_tokens" not in said(RESULT, tmp_path, monkeypatch)
