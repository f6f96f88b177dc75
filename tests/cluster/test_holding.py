"""Who holds a folder, who may follow, and who is sent away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from cluster import holding, lease
from cluster.holding import HeldError, Holder, held
from cluster.lease import Lease
from cluster.storage import StorageError
from tests.fixtures.s3_server import BUCKET

HOLD = """
import sys
from cluster.holding import held
with held(sys.argv[1], "output o", say=print):
    print("held", flush=True)
    sys.stdin.read()
"""


class Clock:
    """A clock that goes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def holder_in(uri: object) -> str | None:
    name: str | None = json.loads(Path(str(uri)).read_bytes())["holder"]
    return name


def impatient(_: float) -> None:
    pytest.fail("nobody should have waited")


def taken_by(uri: str, **changes: object) -> Lease:
    """A lease in the hands of a holder like us but for some changes."""
    told = json.dumps(asdict(replace(Holder(), **changes)))  # type: ignore[arg-type]
    other = Lease(uri, told, 60.0)
    assert other.take()
    return other


@pytest.fixture
def process(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that holds `lease.json` until its input ends."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lease.json")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    started = subprocess.Popen(command, text=True, env={**os.environ, "PYTHONPATH": str(root)}, **pipes)
    assert started.stdout is not None
    assert started.stdout.readline() == "held\n"
    return started


def test_a_second_is_refused_while_the_first_lives_and_welcome_afterwards(
    tmp_path: Path, process: subprocess.Popen[str]
) -> None:
    uri, said = str(tmp_path / "lease.json"), list[str]()
    with pytest.raises(
        HeldError,
        match=rf"^output o is in use by process {process.pid} on \S+ since 20[-\d]+ [\d:]+\+00:00: wait until it has "
        "ended, end it, or choose another output",
    ):
        held(uri, "output o", say=said.append, wait=impatient).__enter__()
    process.communicate("")
    with held(uri, "output o", say=said.append, wait=impatient):
        assert holder_in(uri) is not None
    assert (holder_in(uri), said) == (None, [])


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_holder_is_followed_at_once(tmp_path: Path, process: subprocess.Popen[str], reaped: bool) -> None:
    process.send_signal(signal.SIGKILL)
    if reaped:
        process.wait()
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but still in the list of processes
    with held(str(tmp_path / "lease.json"), "output o", say=pytest.fail, wait=impatient):
        assert json.loads((tmp_path / "lease.json").read_bytes())["fence"] == 2
    process.communicate()


def test_a_process_that_has_got_the_number_of_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "lease.json")
    taken_by(uri, began="1")
    with held(uri, "output o", say=pytest.fail, wait=impatient):
        pass


def test_one_process_does_not_hold_a_thing_twice(tmp_path: Path) -> None:
    uri = str(tmp_path / "lease.json")
    with held(uri, "output o", say=pytest.fail), pytest.raises(HeldError, match=f"process {os.getpid()} on"):
        held(uri, "output o", say=pytest.fail, wait=impatient).__enter__()


def test_a_silent_holder_on_another_machine_is_followed_after_some_patience(tmp_path: Path) -> None:
    uri, clock, said = str(tmp_path / "lease.json"), Clock(), list[str]()
    taken_by(uri, machine="elsewhere", host="far")
    with held(uri, "output o", say=said.append, wait=clock.wait, clock=clock):
        assert 60.0 <= clock.now <= 61.0
    assert len(said) == 1
    assert f"output o was in use by process {os.getpid()} on far since" in said[0]
    assert "waiting for a sign of life, 60 s at most" in said[0]


def test_a_lively_holder_on_another_machine_is_left_alone(tmp_path: Path) -> None:
    uri, clock = str(tmp_path / "lease.json"), Clock()
    other = taken_by(uri, machine="elsewhere", host="far")

    def wait(seconds: float) -> None:
        clock.wait(seconds)
        if clock.now == 15.0:
            assert other.renew()

    with pytest.raises(HeldError, match="on far since"):
        held(uri, "output o", say=lambda _: None, wait=wait, clock=clock).__enter__()
    assert clock.now == 15.0


def test_a_holder_of_another_version_is_watched_like_one_elsewhere(tmp_path: Path) -> None:
    uri, clock, said = str(tmp_path / "lease.json"), Clock(), list[str]()
    assert Lease(uri, "somebody", 60.0).take()
    with held(uri, "output o", say=said.append, wait=clock.wait, clock=clock):
        assert clock.now >= 60.0
    assert "in use by another process" in said[0]


def test_who_was_quicker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease is free when we look, and another's when we write."""
    uri, waits = str(tmp_path / "lease.json"), list[float]()
    taken_by(uri).release()
    real = lease.replace_if_match

    def outrun(uri: str, data: bytes, version: str) -> str | None:
        monkeypatch.setattr(lease, "replace_if_match", real)
        taken_by(uri, token="quick")
        return real(uri, data, version)

    monkeypatch.setattr(lease, "replace_if_match", outrun)
    with pytest.raises(HeldError, match=f"process {os.getpid()} on"):
        held(uri, "output o", say=pytest.fail, wait=waits.append).__enter__()
    assert len(waits) == 1


def test_a_store_that_can_hold_nothing_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def refuse(*_: object) -> bool:
        raise StorageError("no hard links here")

    monkeypatch.setattr(lease, "create_if_absent", refuse)
    with held(str(tmp_path / "lease.json"), "output o", say=said.append):
        pass
    assert said == ["WARNING: nothing keeps a second run from output o, this one goes on: no hard links here"]


def test_it_beats_while_it_holds_and_says_when_it_was_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, said = tmp_path / "lease.json", list[str]()
    monkeypatch.setattr(holding, "_BEATS", 1000.0)
    with held(str(uri), "output o", say=said.append, patience_s=10.0):
        while json.loads(uri.read_bytes())["beat"] < 2:
            pass
        taker = Lease(str(uri), "thief", 60.0)
        while not taker.take(lambda _: True):
            pass
        while not said:
            pass
    assert "another run has taken over output o" in said[0]
    assert holder_in(uri) == "thief"


@pytest.mark.pipeline
@pytest.mark.usefixtures("s3_server")
def test_a_prefix_in_s3_is_held_as_well() -> None:
    uri = f"s3://{BUCKET}/run/run.lease.json"
    for _ in range(2):
        with held(uri, "output o", say=pytest.fail, wait=impatient), pytest.raises(HeldError):
            held(uri, "output o", say=pytest.fail, wait=impatient).__enter__()


def test_a_clock_that_is_set_makes_nobody_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = psutil.Process.create_time
    holder = Holder()
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: real(process) + 3600.0)
    assert not holder.is_gone()
    assert Holder(began="1").is_gone()
