"""Failures of a run, as people read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from cluster.failures import JobFailedError
from cluster.storage import StorageError
from pipelines.training import failures
from pipelines.training.failures import explained
from pipelines.training.recipe import TrainRecipe
from pipelines.training.states import StateCard, publish_state

CARD = StateCard(
    stage="tune",
    step=4,
    adam_step=4,
    position=0,
    zero=0,
    recipe={},
    corpus_digest="",
    versions={},
    parameters={},
    parts=(),
)


def recipe(folder: Path) -> TrainRecipe:
    return TrainRecipe(corpus=str(folder / "corpus"), output=str(folder / "run"))


def test_the_process_that_failed_by_itself_is_named_not_those_that_lost_their_connection(tmp_path: Path) -> None:
    nan = UserExceptionWithTraceback(FloatingPointError("the loss of tune step 7 is nan.\n"), "a long traceback")
    lost = UserExceptionWithTraceback(RuntimeError("Connection reset by peer"), "another")
    said = r"^training stopped: the process of rank 2 failed, FloatingPointError: the loss of tune step 7 is nan; no "
    with pytest.raises(JobFailedError, match=said), explained(recipe(tmp_path)):
        raise WorkerGroupError("...", {0: lost, 1: RayActorError(), 2: nan})


def test_a_process_that_died_comes_before_those_that_lost_it(tmp_path: Path) -> None:
    state, cut = (tmp_path / "run" / "states" / f"tune-0000000{step}" for step in (4, 6))
    for folder in (state, cut):
        folder.mkdir(parents=True)
        publish_state(str(folder), CARD)
    (cut / "state.json").write_text("{")
    lost = UserExceptionWithTraceback(ConnectionResetError("by peer"), "...")
    said = rf"rank 1 failed, RayActorError: .*; the same command goes on from {state}; {cut} has a damaged state.json"
    with pytest.raises(JobFailedError, match=said), explained(recipe(tmp_path)):
        raise WorkerGroupError("...", {0: lost, 1: RayActorError()})


def test_a_storage_that_is_away_does_not_hide_why_a_run_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise StorageError("cannot be reached")

    monkeypatch.setattr(failures, "latest", away)
    said = r"Ray Train failed, TimeoutError: no room; the same command goes on from the latest state in .*, if there is"
    with pytest.raises(JobFailedError, match=said), explained(recipe(tmp_path)):
        raise ControllerError(TimeoutError("no room"))


def test_ray_trains_own_failures_are_said_and_others_pass(tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match="Ray Train failed, TimeoutError: no room"), explained(recipe(tmp_path)):
        raise ControllerError(TimeoutError("no room"))
    with pytest.raises(KeyError), explained(recipe(tmp_path)):
        raise KeyError


def test_of_a_traceback_that_a_worker_prints_only_the_error_stays(tmp_path: Path) -> None:
    printed = (
        "\x1b[36mray::SplitCoordinator.get()\x1b[39m (pid=2232, ip=127.0.0.1)\n"
        '  File "/a/stream_split_iterator.py", line 388, in get\n    raise self._exception\n'
        "           ^^^^^^^^^^^^^^^\n"
        "ray.exceptions.RayTaskError(ShardError): \x1b[36mray::MapBatches(_read_span)()\x1b[39m (pid=2725)\n"
        '  File "/a/reader.py", line 78, in _fetch\n    raise ShardError(f"shard {uri}: its bytes")\n'
        "pipelines.corpus.shards.ShardError: shard /c/corpus-000000.tar: its bytes differ, prepare again\n"
        "Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).\n"
    )
    task = RayTaskError("get", printed, ValueError("x"))
    said = r"rank 0 failed, ShardError: shard /c/corpus-000000.tar: its bytes differ, prepare again; no usable state"
    with pytest.raises(JobFailedError, match=said) as failed, explained(recipe(tmp_path)):
        raise WorkerGroupError("...", {0: task})
    assert "\x1b" not in str(failed.value)


def test_a_message_without_end_is_cut(tmp_path: Path) -> None:
    with (
        pytest.raises(JobFailedError, match=r"no room .* \.\.\.; no") as failed,
        explained(recipe(tmp_path)),
    ):
        raise ControllerError(TimeoutError("\x1b[31m" + "no room " * 1000))
    assert len(str(failed.value)) < 2000
    assert "\x1b" not in str(failed.value)
