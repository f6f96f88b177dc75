"""Exports judged beside a training for real: what they are worth, what a judge that fails costs, and what stays."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.progress import Progress
from cluster.storage import exists
from pipelines.evaluation import alone
from pipelines.evaluation.judge import Judge
from pipelines.evaluation.recipe import EvaluateRecipe, SuiteRecipe
from pipelines.evaluation.runner import evaluate
from pipelines.evaluation.units import Unit
from pipelines.training.exports import is_complete
from pipelines.training.recipe import StageRecipe, TrainRecipe
from pipelines.training.trainer import train
from pipelines.training.validation_recipe import ValidationRecipe
from qmop.vtcbench.summary import summarise
from tests.pipelines.evaluation.grounds import unwell
from tests.pipelines.training.grounds import ground_in

pytestmark = pytest.mark.pipeline
SUITE = SuiteRecipe(seed=77, count=50, items_per_shard=25)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Ray session, a small corpus and a base with random weights."""
    with ground_in(tmp_path_factory.mktemp("validation"), samples_per_shard=100) as folder:
        yield folder


def recipe(ground: Path, name: str, **validation: Any) -> TrainRecipe:
    """A tuning stage of six steps with three exports."""
    return TrainRecipe(
        corpus=str(ground / "corpus"),
        output=str(ground / name),
        base=str(ground / "base"),
        compressor="average_pool",
        micro_batch=4,
        global_batch=8,
        workers=1,
        align=StageRecipe(steps=0),
        tune=StageRecipe(steps=6, projector_rate=1e-3, language_rate=1e-3, exports=3),
        log_every=1,
        trackers=(),
        validation=ValidationRecipe(**{"every": 1, "suite": SUITE, "time_limit_s": 240.0, **validation}),
    )


def best_of(asked: TrainRecipe) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(asked.output, "best.json").read_text())
    return found


def notes_of(asked: TrainRecipe) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(asked.output, "metrics.jsonl").read_text().splitlines()]


def behind(class_of: Any) -> Any:
    """The class behind an actor class."""
    return class_of.__ray_metadata__.modified_class


@ray.remote
class JudgeOfTheEnd(behind(Judge)):  # type: ignore[misc]
    """Answers nothing before the training has made its last export."""

    def run(self, unit: Unit) -> tuple[int, int]:
        last = unit.candidate.uri[:-6] + "000006"
        while not is_complete(last):
            time.sleep(0.05)
        done: tuple[int, int] = super().run(unit)
        return done


def test_exports_are_judged_while_training_goes_on(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge of the first export waits for the last: a training that waited for it would never end."""
    asked, out = recipe(ground, "judged", keep_exports=1), io.StringIO()
    monkeypatch.setattr(alone, "Judge", JudgeOfTheEnd)
    result = train(asked, Progress(stream=out))
    found = best_of(asked)
    assert [one["step"] for one in found["judged"]] == [2, 6]
    assert ([one["step"] for one in found["passed_over"]], found["failed"]) == ([4], [])
    kinds = [note["kind"] for note in notes_of(asked)]
    assert (kinds.count("export"), kinds.count("validation_judged")) == (3, 2)
    stay = {found["name"], "average_pool-16-tune-000006"}
    assert {uri.rsplit("/", 1)[-1] for uri in result.exports} == stay
    assert all(exists(uri) for uri in result.exports)

    store = f"{asked.output}/validation"
    evaluation = EvaluateRecipe(checkpoints=list(result.exports), output=store, rendered=SUITE)
    judged = evaluate(evaluation, Progress(stream=io.StringIO()))
    assert (judged.done, judged.reused) == (0, 2 * len(stay))
    assert judged.suite.digest == found["suite_digest"]
    rows = {row.label: row for row in summarise(judged.records).rows}
    for one in found["judged"]:
        if one["name"] in stay:
            row = rows[one["name"]]
            exact = {name: figure.value for name, figure in row.dimensions.items()}
            assert one["scores"] == {"micro": row.micro.value, "macro": row.macro and row.macro.value, **exact}
            assert (one["items"], one["digest"]) == (50, row.checkpoint)
    assert found["value"] == rows[found["name"]].micro.value == max(one["scores"]["micro"] for one in found["judged"])

    again = train(asked, Progress(stream=io.StringIO()))
    assert (again.trained, again.exports, best_of(asked)) == (False, result.exports, found)


@pytest.mark.soak
def test_a_judge_that_fails_costs_a_warning_and_its_time_at_most(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = replace(SUITE, count=25)  # a unit, for each is tried three times
    asked, out = recipe(ground, "unwell", every=3, time_limit_s=2.0, suite=suite), io.StringIO()
    monkeypatch.setattr(alone, "Judge", unwell(refused="2", deadly="4"))
    result = train(asked, Progress(stream=out))
    assert (result.trained, len(result.exports)) == (True, 3)
    assert "WARNING: average_pool-16-tune-000006 was not judged" in out.getvalue()
    assert "it took longer than 2 s, with 0 of 1 units done" in out.getvalue()
    sooner = replace(asked, validation=replace(asked.validation, every=1, time_limit_s=240.0))
    assert not train(sooner, Progress(stream=out)).trained
    assert "RuntimeError: this picture is upside down" in out.getvalue()
    assert "WARNING: average_pool-16-tune-000004 was not judged" in out.getvalue()
    found = best_of(asked)
    assert (found["name"], found["judged"], [one["step"] for one in found["failed"]]) == (None, [], [2, 4, 6])


def test_validation_has_resources_of_its_own(ground: Path) -> None:
    asked = recipe(ground, "wide", num_cpus=64.0)
    with pytest.raises(ValueError, match=r"training with 1 workers and validation needs 6\d CPUs"):
        train(asked, Progress(stream=io.StringIO()))
