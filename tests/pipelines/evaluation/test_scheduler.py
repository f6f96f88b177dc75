"""Units over workers that fail in every way; what stands in for Ray here runs everything in this process."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError

from cluster.progress import Progress
from pipelines.evaluation import scheduler
from pipelines.evaluation.discovery import Candidate
from pipelines.evaluation.judge import Done
from pipelines.evaluation.pace import Pace
from pipelines.evaluation.recipe import EvaluateRecipe
from pipelines.evaluation.scheduler import Spread, Tally
from pipelines.evaluation.sources import AtOnce
from pipelines.evaluation.suspicion import WorkerError
from pipelines.evaluation.units import Generation, Unit
from qmop.vtcbench.suite import ShardInfo, SuiteManifest

Run = Callable[..., Done]


def raised(error: Exception) -> RayError:
    """An exception of a worker's own, as Ray hands it over."""
    return RayTaskError("run", "Traceback\n" + str(error), error).as_instanceof_cause()


class Cluster:
    """What the scheduler asks of Ray; a worker is its number, counted from 1, and `run` is what it does."""

    def __init__(self, run: Run) -> None:
        self.run, self.started, self.ended = run, 0, []

    def options(self, **_: Any) -> Cluster:
        return self

    def remote(self, *_: Any) -> Any:
        self.started += 1
        return Worker(self.started, self.run)

    def wait(self, references: list[Running], **_: Any) -> tuple[list[Running], list[Running]]:
        references[0].go_on()
        return references[:1], references[1:]

    def get(self, reference: Running) -> Done:
        if isinstance(reference.came, RayError):
            raise reference.came
        return reference.came

    def kill(self, worker: Worker) -> None:
        self.ended.append(worker.number)


class Worker:
    def __init__(self, number: int, run: Run) -> None:
        self.number, self._run = number, run

    @property
    def run(self) -> Any:
        return self

    def remote(self, unit: Unit, _fence: int, _views: Any, doubted: tuple[str, ...]) -> Running:
        return Running(lambda: self._run(self.number, unit.shard.url, doubted))


class Running:
    """A unit at a worker, and what came of it."""

    def __init__(self, run: Callable[[], Done]) -> None:
        self._run = run
        self.came: Done | RayError

    def go_on(self) -> None:
        try:
            self.came = self._run()
        except RayError as error:
            self.came = error


def spread(
    run: Run, monkeypatch: pytest.MonkeyPatch, shards: int = 2, pause_s: float = 0.0
) -> tuple[Tally, Cluster, str]:
    infos = tuple(ShardInfo(url=f"s{n}", sha256=f"{n}", md5="m", count=10, size=1) for n in range(shards))
    asked = SuiteManifest(
        folder="/suite", digest="d", seed=0, count=20, items_per_shard=10, dimensions={}, probe="", shards=infos
    )
    candidate = Candidate(label="a", uri="x", digest="d", method="mlp", budget=0)
    units = [
        Unit(candidate=candidate, shard=one, suite_digest="d", generation=Generation(max_new_tokens=8)) for one in infos
    ]
    recipe, out, cluster = EvaluateRecipe(checkpoints=["x"], output="/store", workers=1), io.StringIO(), Cluster(run)
    monkeypatch.setattr(scheduler, "ray", cluster)
    monkeypatch.setattr(scheduler, "Judge", cluster)
    monkeypatch.setattr(scheduler, "_WAIT_S", 0.001)
    monkeypatch.setattr(scheduler, "_PAUSES_S", (pause_s, pause_s))
    return Spread(AtOnce(units), asked, recipe, Progress(stream=out)).run(), cluster, out.getvalue()


def test_a_worker_that_is_not_fit_is_ended_and_another_is_asked_about_its_doubts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, str, tuple[str, ...]]] = []

    def run(worker: int, shard: str, doubted: tuple[str, ...]) -> Done:
        seen.append((worker, shard, doubted))
        if worker == 1:
            raise raised(WorkerError("CUDA error: misaligned address", ["k", "l"]))
        return Done(10, 0)

    tally, cluster, said = spread(run, monkeypatch)
    assert (len(tally.done), tally.failed) == (2, {})
    assert [one for one in seen if one[1] == "s0"] == [(1, "s0", ()), (2, "s0", ("k", "l"))]
    assert next(one for one in seen if one[1] == "s1") == (2, "s1", ())
    assert cluster.ended == [1, 2]  # the second at the end
    assert "a on s0 again, attempt 2 of 3" in said
    assert "misaligned address" in said


def test_a_fault_that_stays_is_told_after_three_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_worker: int, shard: str, _doubted: tuple[str, ...]) -> Done:
        if shard == "s0":
            raise raised(WorkerError("none of 10 items could be answered"))
        return Done(10, 0)

    tally, cluster, _ = spread(run, monkeypatch)
    assert len(tally.done) == 1
    assert "none of 10 items could be answered" in tally.failed["a on s0"]
    assert cluster.ended == [1, 2, 3]


def test_a_worker_that_its_last_item_cost_the_device_does_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    workers: list[int] = []

    def run(worker: int, _shard: str, _doubted: tuple[str, ...]) -> Done:
        workers.append(worker)
        return Done(10, 1, worn=True)

    tally, cluster, _ = spread(run, monkeypatch)
    assert len(tally.done) == 2
    assert workers == [1, 2]
    assert cluster.ended == [1, 2]


@pytest.mark.parametrize("error", [OutOfMemoryError("the machine has no memory left"), ActorDiedError()])
def test_a_process_that_is_gone_is_not_asked_again(monkeypatch: pytest.MonkeyPatch, error: RayError) -> None:
    def run(worker: int, _shard: str, _doubted: tuple[str, ...]) -> Done:
        if worker == 1:
            raise error
        return Done(10, 0)

    tally, cluster, _ = spread(run, monkeypatch)
    assert (len(tally.done), tally.failed, cluster.started) == (2, {}, 2)


def test_a_mistake_is_no_fault_of_the_worker_and_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_worker: int, shard: str, _doubted: tuple[str, ...]) -> Done:
        if shard == "s0":
            raise raised(ValueError("this shard is upside down"))
        return Done(10, 0)

    tally, cluster, _ = spread(run, monkeypatch)
    assert (len(tally.done), cluster.started) == (1, 1)
    assert "upside down" in tally.failed["a on s0"]


def test_what_waits_for_another_attempt_counts_among_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [1000.0], [0]

    def run(_worker: int, _shard: str, _doubted: tuple[str, ...]) -> Done:
        calls[0] += 1
        clock[0] += 60.0
        if calls[0] == 1:
            raise raised(OSError("the storage is away"))
        return Done(10, 0)

    monkeypatch.setattr(scheduler, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(scheduler, "Pace", lambda: Pace(lambda: clock[0]))
    _, _, told = spread(run, monkeypatch, shards=3, pause_s=100.0)
    assert "units: 1/3 (33 %)  a on s1, about 4 min left" in told
