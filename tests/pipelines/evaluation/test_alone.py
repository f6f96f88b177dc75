"""A judge beside other work: what it cannot do costs its time limit at most, and is told apart."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError

from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from pipelines.evaluation import alone
from pipelines.evaluation.alone import CancelledError, LoneJudge
from pipelines.evaluation.discovery import discover
from pipelines.evaluation.judge import Done
from pipelines.evaluation.recipe import EvaluateRecipe, SuiteRecipe
from pipelines.evaluation.suspicion import WorkerError
from pipelines.evaluation.units import Generation, plan_units
from tests.pipelines.evaluation.grounds import unwell
from tests.pipelines.evaluation.test_discovery import export

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three exports, on a cluster."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    for step in (1, 2, 3):
        export(folder, step)
    with ray_session(RaySettings(num_cpus=2, object_store_mb=100), Progress(stream=io.StringIO())):
        yield folder


@pytest.fixture
def judge(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoneJudge:
    """A judge that is unwell, with two seconds for each export."""
    monkeypatch.setattr(alone, "Judge", unwell(refused="1", deadly="2"))
    asked = EvaluateRecipe(
        checkpoints=[str(run)], output=str(tmp_path), rendered=SuiteRecipe(seed=3, count=8, items_per_shard=8)
    )
    progress, cancelled = Progress(stream=io.StringIO()), threading.Event()
    return LoneJudge(asked, num_cpus=1, num_gpus=0, time_limit_s=2.0, progress=progress, cancelled=cancelled)


def checkpoint(run: Path, step: int) -> str:
    (found,) = (run / "checkpoints").glob(f"*-{step:06d}")
    return str(found)


def test_a_refusal_and_a_death_are_its_callers_to_hear_of(run: Path, judge: LoneJudge) -> None:
    judge._time_limit_s = 300.0
    with pytest.raises(RuntimeError, match="this picture is upside down"):
        judge(checkpoint(run, 1))
    with pytest.raises(RayActorError):
        judge(checkpoint(run, 2))


def test_it_is_waited_for_no_longer_than_the_limit(run: Path, judge: LoneJudge) -> None:
    with pytest.raises(TimeoutError, match="it took longer than 2 s, with 0 of 1 units done"):
        judge(checkpoint(run, 3))


def test_who_is_cancelled_does_not_wait(run: Path, judge: LoneJudge) -> None:
    judge._time_limit_s = 300.0
    judge._cancelled.set()
    with pytest.raises(CancelledError):
        judge(checkpoint(run, 3))


@pytest.mark.parametrize(("unfit", "raised"), [(2, False), (3, True)])
def test_a_process_that_is_not_fit_is_followed_by_another_twice(
    run: Path, judge: LoneJudge, monkeypatch: pytest.MonkeyPatch, unfit: int, raised: bool
) -> None:
    made: list[tuple[str, ...]] = []

    class Process:
        """What stands in for a process: the first ones are not fit, each with one doubt more."""

        def __init__(self) -> None:
            self.run, self.number = self, len(made)
            made.append(())

        def remote(self, _unit: object, doubted: tuple[str, ...] = ()) -> Process:
            made[self.number] = doubted
            return self

    def got(process: Process) -> Done:
        if process.number < unfit:
            raise WorkerError("CUDA error: no kernel image", [str(n) for n in range(process.number + 1)])
        return Done(8, 0)

    killed: list[int] = []
    stand_in = SimpleNamespace(
        wait=lambda found, **_: (found, []), get=got, kill=lambda process: killed.append(process.number)
    )
    monkeypatch.setattr(alone, "ray", stand_in)
    monkeypatch.setattr(judge, "_judge", lambda _: Process())
    units = plan_units(discover([checkpoint(run, 1)]).candidates, judge.suite, Generation(max_new_tokens=8))
    if raised:
        with pytest.raises(WorkerError, match="no kernel image"):
            judge._answer(units, judge.suite)
    else:
        judge._answer(units, judge.suite)
    assert made == [(), ("0",), ("0", "1")]
    assert killed == [0, 1, 2]
