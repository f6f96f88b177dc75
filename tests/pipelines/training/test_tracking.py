import importlib.util
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import ray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from cluster.storage import list_files, open_read
from pipelines.training import tracking
from pipelines.training.trackers import tensorboard
from pipelines.training.trackers.tensorboard import Copier
from pipelines.training.tracking import check_trackers, open_trackers, tracker_names
from tests.fixtures.s3_server import BUCKET

WAIT_S = 90.0


def silent(text: str) -> None:
    pytest.fail(f"nothing should have been said, but: {text}")


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard itself reads, checksums and all."""
    read = EventAccumulator(str(folder)).Reload()
    return [(point.step, round(point.value, 5)) for point in read.Scalars(name)]


def track(output: object, steps: list[tuple[int, float]], facts: Mapping[str, Any] | None = None) -> None:
    tracker = open_trackers(("tensorboard",), str(output), "run", say=silent)
    if facts:
        tracker.facts(facts)
    for step, loss in steps:
        tracker.scalars(step, {"train/loss": loss, "time/eta_seconds": 1.0 * step})
    tracker.close()


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    track(tmp_path, [(10, 2.5), (20, 1.25)], {"recipe": {"tokens": 16, "align": {"steps": 60}}, "digest": "abc"})
    assert points(tmp_path / "tensorboard", "train/loss") == [(10, 2.5), (20, 1.25)]
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(read.Tags()["scalars"]) == ["time/eta_seconds", "train/loss"]
    text = read.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "  align:\n    steps: 60" in text


def test_a_run_that_goes_back_replaces_its_later_part(tmp_path: Path) -> None:
    """The values of the second attempt win, also those that the first had and the second has not reached yet."""
    track(tmp_path, [(10, 5.0), (20, 4.0), (30, 3.0), (40, 2.0), (20, 4.5), (30, 3.5)])
    assert points(tmp_path / "tensorboard", "train/loss") == [(10, 5.0), (20, 4.5), (30, 3.5)]


def test_a_run_that_is_taken_up_later_replaces_its_later_part(tmp_path: Path) -> None:
    track(tmp_path, [(10, 5.0), (20, 4.0), (30, 3.0)])
    track(tmp_path, [(20, 4.5), (30, 3.5), (40, 2.5)])
    assert points(tmp_path / "tensorboard", "train/loss") == [(10, 5.0), (20, 4.5), (30, 3.5), (40, 2.5)]


class Faulty:
    """Fails at the second step, or hangs there."""

    def __init__(self, seen: list[int], hang: threading.Event | None = None) -> None:
        self.seen, self.hang = seen, hang

    def facts(self, facts: Mapping[str, Any]) -> None:
        pass

    def scalars(self, step: int, _: Mapping[str, float]) -> None:
        self.seen.append(step)
        if step == 2 and self.hang:
            self.hang.wait(WAIT_S)
        elif step == 2:
            raise ConnectionError("the server\nis gone")

    def close(self) -> None:
        pass


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A tracker `faulty` beside the others."""
    told = SimpleNamespace(seen=[], hang=None, said=[])
    module = ModuleType("pipelines.training.trackers.faulty")
    module.PACKAGE = module.INSTALL = "pytest"  # type: ignore[attr-defined]
    module.open_tracker = lambda *_: Faulty(told.seen, told.hang)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(tracking, "tracker_names", lambda: ("faulty", "tensorboard"))
    return told


def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(tmp_path: Path, faulty: SimpleNamespace) -> None:
    both = open_trackers(("faulty", "tensorboard"), str(tmp_path), "run", say=faulty.said.append)
    for step in range(1, 6):
        both.scalars(step, {"train/loss": 1.0})
    both.close()
    assert faulty.said == [
        "WARNING: the tracker faulty is left out from here on, training goes on: ConnectionError: the server is gone"
    ]
    assert faulty.seen == [1, 2]
    assert len(points(tmp_path / "tensorboard", "train/loss")) == 5


def test_a_tracker_that_hangs_holds_nobody_up(
    tmp_path: Path, faulty: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty.hang = threading.Event()
    both = open_trackers(("faulty", "tensorboard"), str(tmp_path), "run", say=faulty.said.append)
    began = time.monotonic()
    for step in range(1, 5):
        both.scalars(step, {"train/loss": 1.0})
    assert time.monotonic() - began < 1
    monkeypatch.setattr(tracking, "_PATIENCE_S", 0.2)
    both._opened[0].close()  # type: ignore[attr-defined]
    faulty.hang.set()
    monkeypatch.setattr(tracking, "_PATIENCE_S", WAIT_S)
    both.close()
    assert [text.rsplit(": ", 1)[-1] for text in faulty.said] == ["it did not finish within 0 s"]
    assert len(points(tmp_path / "tensorboard", "train/loss")) == 4


def test_a_tracker_that_falls_too_far_behind_is_left_out(
    tmp_path: Path, faulty: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_BACKLOG", 3)
    faulty.hang = threading.Event()
    slow = open_trackers(("faulty",), str(tmp_path), "run", say=faulty.said.append)
    for step in range(1, 20):
        slow.scalars(step, {})
    faulty.hang.set()
    slow.close()
    assert [text.rsplit(": ", 1)[-1] for text in faulty.said] == ["it is 3 notes behind"]


def test_a_disk_that_is_full_is_a_warning(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "tensorboard").write_text("in the way")
    tracker = open_trackers(("tensorboard",), str(tmp_path), "run", say=said.append)
    tracker.scalars(1, {"train/loss": 1.0})
    tracker.close()
    assert len(said) == 1
    assert "tracker tensorboard is left out" in said[0]


def test_an_unknown_tracker_is_refused_with_the_known_ones() -> None:
    assert tracker_names() == ("mlflow", "tensorboard", "wandb")
    with pytest.raises(ValueError, match="'comet', which is unknown: choose from mlflow, tensorboard, wandb"):
        check_trackers(("tensorboard", "comet"))


@pytest.mark.parametrize(("name", "install"), [("mlflow", "mlflow-skinny"), ("wandb", "wandb")])
def test_a_tracker_without_its_package_is_refused_with_the_command(
    name: str, install: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    said = rf"trackers names {name}, but the package {name} is not installed: run `pip install {install}`"
    with pytest.raises(ValueError, match=said):
        open_trackers((name,), str(tmp_path), "run", say=silent)


def test_a_folder_that_is_called_like_a_package_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if not (Path(p) / "wandb").is_dir())])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ValueError, match="pip install wandb"):
        check_trackers(("wandb",))


class Server:
    """What MLflow's client keeps on its server."""

    def __init__(self) -> None:
        self.runs: dict[str, SimpleNamespace] = {}

    def get_experiment_by_name(self, _: str) -> None:
        return None

    def create_experiment(self, _: str) -> str:
        return "7"

    def create_run(self, experiment: str, *, run_name: str) -> SimpleNamespace:
        run_id = f"{experiment}-{len(self.runs)}"
        self.runs[run_id] = SimpleNamespace(name=run_name, params=[], metrics=[], status="RUNNING")
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run_id: str, *, status: str) -> None:
        self.runs[run_id].status = status

    def get_metric_history(self, run_id: str, name: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(step=step) for key, _, _, step in self.runs[run_id].metrics if key == name]

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self.runs[run_id].metrics += metrics
        self.runs[run_id].params += params

    def set_terminated(self, run_id: str) -> None:
        self.runs[run_id].status = "FINISHED"


def test_mlflow_keeps_one_run_and_no_step_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    entities = SimpleNamespace(Metric=lambda *values: values, Param=lambda *values: values)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda: server, entities=entities))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    monkeypatch.setattr(tracking, "check_trackers", lambda _: None)
    for steps in ((10, 20, 30), (20, 30, 40)):
        tracker = open_trackers(("mlflow",), str(tmp_path), "qmop-16", say=silent)
        tracker.facts({"recipe": {"tokens": 16, "options": {}}})
        for step in steps:
            tracker.scalars(step, {"train/loss": 1 / step})
        tracker.close()
    (run,) = server.runs.values()
    assert (run.name, run.status) == ("qmop-16", "FINISHED")
    assert run.params == [("recipe.tokens", "16"), ("recipe.options", "{}")]
    assert [(name, step) for name, _, _, step in run.metrics] == [("train/loss", s) for s in (10, 20, 30, 40)]


def test_mlflow_without_a_server_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=Server))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking, "check_trackers", lambda _: None)
    open_trackers(("mlflow",), str(tmp_path), "run", say=said.append).close()
    assert "MLFLOW_TRACKING_URI is not set" in said[0]


def test_wandb_keeps_one_run_and_no_step_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    logged: list[tuple[int, float]] = []

    def init(**options: Any) -> SimpleNamespace:
        begun.append(options)
        return SimpleNamespace(
            step=1 + max((step for step, _ in logged), default=-1),
            config=SimpleNamespace(update=lambda *_, **__: None),
            log=lambda values, step: logged.append((step, values["train/loss"])),
            finish=lambda: None,
        )

    setup = SimpleNamespace(settings=SimpleNamespace(mode="offline"))
    fake = SimpleNamespace(init=init, Settings=dict, setup=lambda: setup)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(tracking, "check_trackers", lambda _: None)
    for steps in ((10, 20, 30), (20, 30, 40)):
        tracker = open_trackers(("wandb",), str(tmp_path), "qmop-16", say=silent)
        tracker.facts({"tokens": 16})
        for step in steps:
            tracker.scalars(step, {"train/loss": 1.0 * step})
        tracker.close()
    assert [step for step, _ in logged] == [10, 20, 30, 40]
    assert begun[0]["id"] == begun[1]["id"]
    assert (begun[0]["resume"], begun[0]["dir"], begun[0]["name"]) == ("allow", str(tmp_path), "qmop-16")


def test_wandb_without_a_key_never_asks_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    said: list[str] = []
    setup = SimpleNamespace(settings=SimpleNamespace(mode="online"))
    fake = SimpleNamespace(login=lambda **options: asked.append(options), setup=lambda: setup)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(tracking, "check_trackers", lambda _: None)
    open_trackers(("wandb",), str(tmp_path), "run", say=said.append).close()
    assert asked == [{"prompt": False, "verify": False}]
    assert "set WANDB_API_KEY, or WANDB_MODE=offline" in said[0]


def until(true: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _fetched(uri: str, folder: Path) -> Path:
    folder.mkdir()
    for file in list_files(uri):
        with open_read(file) as stream:
            (folder / file.rsplit("/", 1)[-1]).write_bytes(stream.read())
    return folder


@pytest.mark.pipeline
@pytest.mark.usefixtures("s3_server")
def test_event_files_of_a_run_in_s3_are_copied_while_it_runs_and_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "local").mkdir()
    monkeypatch.setattr(tensorboard.tempfile, "mkdtemp", lambda **_: str(tmp_path / "local"))
    monkeypatch.setattr(tensorboard, "_COPY_EVERY_S", 0.1)
    output = f"s3://{BUCKET}/run"
    tracker = open_trackers(("tensorboard",), output, "run", say=silent)
    tracker.scalars(10, {"train/loss": 2.0})
    until(lambda: _copied(output))
    tracker.scalars(20, {"train/loss": 1.0})
    tracker.close()
    assert points(_fetched(f"{output}/tensorboard", tmp_path / "back"), "train/loss") == [(10, 2.0), (20, 1.0)]
    assert not (tmp_path / "local").exists()


def _copied(output: str) -> bool:
    try:
        return bool(list_files(f"{output}/tensorboard"))
    except FileNotFoundError:
        return False


def test_a_store_that_fails_is_one_warning_and_keeps_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries, said = threading.Semaphore(0), []

    def refuse(*_: object) -> None:
        tries.release()
        raise OSError("no such bucket")

    monkeypatch.setattr(tensorboard, "put_file", refuse)
    (tmp_path / "events").write_bytes(b"x")
    copier = Copier(tmp_path, "s3://gone/run", said.append, every_s=0.01)
    for _ in range(3):
        assert tries.acquire(timeout=WAIT_S)
    copier.close()
    assert len(said) == 2
    assert "cannot be copied to s3://gone/run" in said[0]
    assert said[1].endswith(f"they stay in {tmp_path}")
    assert (tmp_path / "events").exists()


@pytest.mark.pipeline
@pytest.mark.timeout(180)
def test_the_same_numbers_are_gauges_of_ray(tmp_path: Path) -> None:
    with ray_session(RaySettings(num_cpus=2), Progress()):
        tracker = open_trackers((), str(tmp_path), "qmop-16", say=silent)
        tracker.scalars(70, {"train/loss": 1.5, "train/learning_rate/projector": 1e-3})
        port = ray.nodes()[0]["MetricsExportPort"]

        def page() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                return str(answer.read().decode())

        until(lambda: "ray_qmop_train_loss" in page())
        lines = [text for text in page().splitlines() if text.startswith("ray_qmop_")]
        tracker.close()
    values = {text.split("{")[0]: float(text.rsplit(" ", 1)[-1]) for text in lines}
    assert values == {
        "ray_qmop_train_global_step": 70,
        "ray_qmop_train_loss": 1.5,
        "ray_qmop_train_learning_rate_projector": 1e-3,
    }
    assert all('run="qmop-16"' in text for text in lines)
