"""Evaluations for real: a store that is never computed twice, and that no kill changes."""

from __future__ import annotations

import io
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from cluster import local
from cluster.progress import Progress
from pipelines.evaluation import scheduler
from pipelines.evaluation.judge import Done, Judge
from pipelines.evaluation.recipe import TowerRecipe
from pipelines.evaluation.runner import evaluate
from pipelines.evaluation.store import read_index, write_index
from pipelines.evaluation.units import Unit, finished_ids
from tests.pipelines.evaluation.grounds import UNITS, Ground, judges, killed, quiet, scores, started, wait_until

pytestmark = pytest.mark.pipeline


def behind(class_of: Any) -> Any:
    """The class behind an actor class."""
    return class_of.__ray_metadata__.modified_class


@ray.remote
class DiesAtItsCommit(behind(Judge)):  # type: ignore[misc]
    """Is killed once, after the records are on disk and before they have their name."""

    def run(self, unit: Unit, *more: Any) -> Done:
        mark = Path(self.store, "died")

        def link(source: Any, target: Any) -> None:
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)

        real, local.os.link = os.link, link
        try:
            done: Done = super().run(unit, *more)
        finally:
            local.os.link = real
        return done


@ray.remote
class Refuses(behind(Judge)):  # type: ignore[misc]
    """Cannot do one unit."""

    def run(self, unit: Unit, *more: Any) -> Done:
        if unit.candidate.label.endswith("2") and unit.shard.url.endswith("1.tar"):
            raise ValueError("this shard is upside down")
        done: Done = super().run(unit, *more)
        return done


def test_units_are_done_once_counted_and_found_again(ground: Ground) -> None:
    first = ground.recipe("once", checkpoints=[str(ground.folder / "run/checkpoints/*-000001")], workers=1)
    alone = quiet(first)
    assert (alone.planned, alone.done, alone.reused, alone.failed, alone.looked) == (3, 3, 0, {}, 0)
    out = io.StringIO()
    together = evaluate(replace(first, checkpoints=[str(ground.folder / "run")]), Progress(stream=out))
    assert (together.planned, together.done, together.reused) == (9, 6, 3)
    assert "units: 6/6" in out.getvalue()
    assert len(together.records) == 72
    assert {record.visual_tokens for record in together.records} == {16}
    write_index(first.output, together)
    assert read_index(first.output)[0] == list(together.records)
    units = list(Path(first.output, "units").glob("*.parquet"))
    assert sum(pq.read_metadata(unit).num_rows for unit in units) == 72
    again = quiet(replace(first, checkpoints=[str(ground.folder / "run")]))
    assert (again.done, again.reused, again.records) == (0, 9, together.records)


def test_answers_do_not_depend_on_workers_or_on_a_shared_tower(ground: Ground) -> None:
    single = ground.recipe("single", workers=1, tower=TowerRecipe(shared=False))
    assert quiet(single).looked == 0
    assert scores(single.output) == ground.undisturbed()


def test_a_killed_worker_costs_only_its_unit(ground: Ground) -> None:
    wanted, recipe, out = ground.undisturbed(), ground.recipe("worker"), io.StringIO()

    def kill() -> None:
        wait_until(lambda: finished_ids(recipe.output), "a first unit")
        for process in judges():
            process.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = evaluate(recipe, Progress(stream=out))
    killer.join()
    assert (result.done, result.failed) == (UNITS, {})
    assert "attempt 2 of 3" in out.getvalue()
    assert scores(recipe.output) == wanted


def test_a_worker_killed_during_its_commit_leaves_nothing_half(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, recipe = ground.undisturbed(), ground.recipe("commit", workers=1)
    monkeypatch.setattr(scheduler, "Judge", DiesAtItsCommit)
    result = quiet(recipe)
    assert Path(recipe.output, "died").exists()
    assert (result.done, result.failed) == (UNITS, {})
    assert scores(recipe.output) == wanted


def test_a_killed_driver_is_followed_by_the_same_command(ground: Ground) -> None:
    wanted, recipe = ground.undisturbed(), ground.recipe("driver", workers=1)
    command = ground.command("driver", "--workers", "1", "--checkpoints", f"[{ground.folder / 'run'}]")
    driver = started(command, ground.folder / "driver.log")
    try:
        wait_until(lambda: finished_ids(recipe.output) or driver.poll() is not None, "a first unit")
    finally:
        killed(driver)
    before = finished_ids(recipe.output)
    assert before, (ground.folder / "driver.log").read_text()
    result = quiet(recipe)
    assert result.done + result.reused == UNITS
    assert result.reused >= len(before)
    assert scores(recipe.output) == wanted


def test_what_fails_is_named_and_the_rest_stands(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "Judge", Refuses)
    result = quiet(ground.recipe("refused", workers=1))
    assert (result.planned, result.done, result.reused) == (9, 8, 0)
    ((name, why),) = result.failed.items()
    assert name == "average_pool-16-tune-000002 on suite-000001.tar"
    assert "this shard is upside down" in why
