from __future__ import annotations

import io
from typing import Any

import pytest

from cluster.progress import Progress
from jobs import evaluate as job
from pipelines.evaluation.gate import missed, parse_gate
from pipelines.evaluation.recipe import EvaluateRecipe
from pipelines.evaluation.runner import EvaluateResult
from qmop.vtcbench.records import Record
from qmop.vtcbench.suite import SuiteManifest

SUITE = SuiteManifest(folder="s", digest="d", seed=0, count=4, items_per_shard=4, dimensions={}, probe="", shards=())


def records(label: str, right: int, dimension: str = "LD") -> list[Record]:
    facts = {"checkpoint": label, "method": "m", "budget": 16, "visual_tokens": 16, "suite_digest": "d", "shard": "s"}
    words = {"task": "t", "question": "q", "answer": "a", "prediction": "a", "parsable": True}
    return [
        Record(label=label, key=str(at), dimension=dimension, score=float(at < right), **facts, **words)  # type: ignore[arg-type]
        for at in range(4)
    ]


def test_a_gate_is_read_and_nonsense_refused_in_one_sentence() -> None:
    assert parse_gate("micro=0.6, LD=0.25") == {"micro": 0.6, "LD": 0.25}
    assert parse_gate(None) == {}
    wrong = {"mikro=1": "names 'mikro'", "micro": "write it as", "micro=60": "from 0 to 1", "": "asks for nothing"}
    for text, says in wrong.items():
        with pytest.raises(ValueError, match=says):
            EvaluateRecipe(checkpoints=["tiny"], output="o", fail_below=text)


def test_every_checkpoint_that_is_below_is_named() -> None:
    both = [*records("good", 3), *records("bad", 1)]
    assert missed(both, "micro=0.5") == "bad has micro 0.250, below 0.5"
    assert missed(both, "micro=0.25,LD=0.25,macro=0.25") == ""
    assert "good has SC of no item" in missed(both, "SC=0.1")
    assert missed([], "micro=0.1")
    assert missed([], None) == ""


@pytest.mark.parametrize(
    ("failed", "fail_below", "code"),
    [({}, None, 0), ({}, "micro=0.75", 0), ({}, "micro=0.76", 3), ({"u": "why"}, "micro=0.76", 1)],
)
def test_the_exit_code_says_whether_all_is_there_and_good_enough(
    failed: dict[str, str], fail_below: str | None, code: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = EvaluateResult(
        records=tuple(records("a", 3)), planned=1, done=1, reused=0, failed=failed, suite=SUITE, units=()
    )
    monkeypatch.setattr(job, "evaluate", lambda *_: result)
    out = io.StringIO()
    recipe = EvaluateRecipe(checkpoints=["tiny"], output=str(tmp_path), fail_below=fail_below)
    assert job.run(recipe, Progress(stream=out)) == code
    assert ("a has micro 0.750, below 0.76" in out.getvalue()) == (code == 3)
