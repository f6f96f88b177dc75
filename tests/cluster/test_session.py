from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cluster import processes
from cluster.capacity import ClusterBusyError, require
from cluster.ports import free_port
from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from tests.fixtures.other_cluster import CPUS, Other, environment, submit

_ROOT = Path(__file__).resolve().parents[2]
_SMALL = RaySettings(num_cpus=4, object_store_mb=100)
_PROGRAM = """
import json, os, sys, time
import psutil, ray
from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from tests.fixtures.other_cluster import CPUS, Other, environment, submit

before = dict(os.environ)
address, ending = (*sys.argv[1:], "", "")[:2]
with ray_session(RaySettings(address=address or None, num_cpus=2, object_store_mb=100), Progress()) as session:
    answer = ray.get(ray.remote(lambda: 6 * 7).remote())
    below = [p.pid for p in psutil.Process().children(recursive=True)]
    listens = [c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in below]
    print(json.dumps(dict(
        address=session.address, owned=session.owned, answer=answer, pids=below, listens=sorted(set(listens)),
        folder=str(session.temp_dir), mode=os.environ.get("RAY_AUTH_MODE"), cpus=ray.cluster_resources()["CPU"],
        token=os.environ.get("RAY_AUTH_TOKEN"), ray_address=os.environ.get("RAY_ADDRESS"),
    )), flush=True)
    if ending == "wait":
        time.sleep(120)
changed = [n for n in set(before) | set(os.environ) if n.startswith("RAY_") and before.get(n) != os.environ.get(n)]
print(json.dumps(dict(changed=changed, initialized=ray.is_initialized())), flush=True)
"""


@pytest.mark.pipeline
def test_an_embedded_cluster_keeps_to_itself_and_leaves_nothing(tmp_path: Path) -> None:
    inside, after = _run(environment(tmp_path))
    assert inside["owned"]
    assert inside["answer"] == 42
    assert inside["ray_address"] == inside["address"]
    assert inside["mode"] == "token"
    assert len(inside["token"]) == 64
    assert {ip.removeprefix("::ffff:") for ip in inside["listens"]} == {"127.0.0.1"}
    assert after == {"changed": [], "initialized": False}
    assert _alive(inside["pids"]) == []
    assert not Path(inside["folder"]).exists()
    assert list(tmp_path.iterdir()) == []  # no ~/.ray


@pytest.mark.pipeline
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_ends_it_and_nothing_is_left(tmp_path: Path, number: int, code: int) -> None:
    process = _start(environment(tmp_path), "", "wait")
    try:
        assert process.stdout is not None
        inside = json.loads(process.stdout.readline())
        process.send_signal(number)
        process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == code
    assert _alive(inside["pids"]) == []
    assert not Path(inside["folder"]).exists()


@pytest.mark.pipeline
def test_another_cluster_is_neither_joined_nor_disturbed(other: Other) -> None:
    before = {p.pid for p in psutil.Process(other.pid).children(recursive=True) if p.name() in {"raylet", "gcs_server"}}
    inside, _ = _run(environment(other.home, RAY_AUTH_TOKEN="the-token-of-somewhere-else"))
    assert inside["owned"]
    assert inside["address"] != other.address
    assert inside["cpus"] == 2
    now = {p.pid for p in psutil.Process(other.pid).children(recursive=True)}
    assert len(before) == 2
    assert before <= now
    assert (other.home / ".ray" / "auth_token").read_text() == "0123456789abcdef" * 2


@pytest.mark.pipeline
def test_a_given_cluster_is_joined_and_left_running(other: Other) -> None:
    by_argument, after = _run(environment(other.home), other.address)
    by_variable, _ = _run(environment(other.home, RAY_ADDRESS=other.address))
    for inside in (by_argument, by_variable):
        assert not inside["owned"]
        assert inside["address"] == other.address
        assert inside["mode"] == "token"
        assert inside["cpus"] == CPUS
    assert after == {"changed": [], "initialized": False}
    assert psutil.Process(other.pid).is_running()


@pytest.mark.pipeline
def test_a_wrong_or_missing_token_is_one_sentence_at_once(other: Other, tmp_path: Path) -> None:
    for settings in ({}, {"RAY_AUTH_TOKEN": "wrong-wrong-wrong"}):
        started = time.monotonic()
        process = _start(environment(tmp_path, **settings), other.address, "")
        _, errors = process.communicate(timeout=600)
        assert time.monotonic() - started < 60
        assert f"ValueError: The Ray cluster at {other.address} refuses our token: set RAY_AUTH_MODE=token" in errors
        assert "InvalidAuthToken" not in errors.splitlines()[-1]


@pytest.mark.pipeline
def test_a_submitted_job_works_on_the_cluster_that_runs_it(other: Other, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(_PROGRAM)
    done = submit(other, sys.executable, str(tmp_path / "program.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    inside = json.loads(next(line for line in done.stdout.splitlines() if '"owned"' in line))
    assert (inside["owned"], inside["address"], inside["answer"]) == (False, other.address, 42)


@pytest.mark.pipeline
def test_an_open_session_is_shared_its_room_is_counted_and_an_error_ends_it(
    progress: Progress, lines: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings = RaySettings(num_cpus=4, object_store_mb=100, log_dir=str(tmp_path / "logs"))
    below: list[int] = []

    def work() -> None:
        with ray_session(settings, progress) as outer:
            with ray_session(_SMALL, progress) as inner:
                assert (inner.address, inner.owned, outer.owned) == (outer.address, False, True)
            below.extend(process.pid for process in processes.descendants(str(outer.temp_dir)))
            _check_room(progress)
            raise LookupError

    with pytest.raises(LookupError):
        work()
    assert not ray.is_initialized()
    assert len(below) > 3
    assert _alive(below) == []
    assert "Starting an embedded Ray cluster with 4 logical CPUs: done in" in lines.getvalue()
    assert (tmp_path / "logs" / "gcs_server.out").exists()


def _check_room(progress: Progress) -> None:
    class Holder:  # in here, so that it travels by value: workers cannot import a test file
        def ready(self) -> bool:
            return True

    holder = ray.remote(num_cpus=3)(Holder).remote()
    assert ray.get(holder.ready.remote(), timeout=100)
    with pytest.raises(ClusterBusyError, match=r"a test needs 2 CPUs \(1 free\)"):
        require(what="a test", num_cpus=2, progress=progress, timeout_s=3)
    ray.kill(holder)
    require(what="a test", num_cpus=4, progress=progress)
    with pytest.raises(ValueError, match=r"a test needs 5 CPUs \(4 in the whole Ray cluster\)"):
        require(what="a test", num_cpus=5, progress=progress)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("num_cpus", 0, "num_cpus=0 leaves nothing"),
        ("num_gpus", -1, "num_gpus=-1 is negative"),
        ("object_store_mb", 10, "object_store_mb=10 is less than Ray accepts"),
        ("address", "http://127.0.0.1:8265", "is a URL.*ray job submit"),
        ("address", "ray://127.0.0.1:10001", "is a URL"),
        ("address", "somewhere", "address='somewhere' is not a cluster"),
    ],
)
def test_settings_that_cannot_work_are_refused(field: str, value: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RaySettings(**{field: value})  # type: ignore[arg-type]


def test_an_address_where_nobody_answers_is_refused_within_seconds(
    progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{free_port()}"
    started = time.monotonic()
    with (
        pytest.raises(ValueError, match=f"No Ray cluster answers at {address}"),
        ray_session(RaySettings(address=address), progress),
    ):
        pass
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with (
        pytest.raises(ValueError, match=r"RAY_ADDRESS='http://127.0.0.1:8265' is a URL"),
        ray_session(_SMALL, progress),
    ):
        pass
    assert time.monotonic() - started < 10


def _start(env: dict[str, str], address: str, ending: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _PROGRAM, address, ending]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _run(env: dict[str, str], address: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    process = _start(env, address, "")
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    inside, after = (json.loads(line) for line in output.splitlines() if line.startswith("{"))
    return inside, after


def _alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


@pytest.mark.pipeline
@pytest.mark.parametrize("dashboard", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_workers_learn_at_once_where_the_dashboard_is_or_that_there_is_none(dashboard: bool) -> None:
    class Looker:
        def look(self) -> tuple[str, float]:
            from ray.util.state import get_actor  # noqa: PLC0415 - runs in a worker
            from ray.util.state.exception import ServerUnavailable  # noqa: PLC0415

            began = time.monotonic()
            try:
                found = get_actor(ray.get_runtime_context().get_actor_id(), timeout=10)
            except ServerUnavailable:
                return "nobody there", time.monotonic() - began
            return found.state, time.monotonic() - began

    settings = RaySettings(num_cpus=1, object_store_mb=100, dashboard=dashboard)
    with ray_session(settings, Progress(stream=io.StringIO())):
        looker = ray.remote(Looker).remote()
        state, seconds = ray.get(looker.look.remote())
    assert state == ("ALIVE" if dashboard else "nobody there")
    assert seconds < 20  # Ray's own search takes 40
