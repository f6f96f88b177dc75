"""The lines that a run leaves, while it goes on, after a kill and after it went back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster import storage
from cluster.storage import StorageError
from pipelines.training import account as module
from pipelines.training.account import Account
from tests.fixtures.s3_server import BUCKET


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def silent(text: str) -> None:
    pytest.fail(f"nothing should have been said, but: {text}")


def step(number: int, stage: str = "tune", loss: float = 1.0) -> dict[str, Any]:
    return {"kind": "step", "stage": stage, "step": number, "steps": 9, "loss": loss}


def state(number: int) -> dict[str, Any]:
    return {"kind": "state", "name": f"tune-{number:08d}", "bytes": 1, "seconds": 1.0}


def lines(uri: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_bytes(str(uri)).splitlines()]


def test_every_note_is_in_the_file_at_once_and_the_end_adds_nothing(tmp_path: Path) -> None:
    place, told = tmp_path / "run" / "metrics.jsonl", [step(1), state(1), {"kind": "retired", "name": "x"}]
    account = Account(str(place), silent)
    for number, note in enumerate(told):
        account.add(note)
        assert lines(place) == told[: number + 1]
    account.close()
    assert place.read_text() == "".join(json.dumps(note) + "\n" for note in told)


def test_a_run_without_a_note_leaves_an_empty_file(tmp_path: Path) -> None:
    Account(str(tmp_path / "m.jsonl"), silent).close()
    assert (tmp_path / "m.jsonl").read_bytes() == b""


def test_a_run_that_goes_on_keeps_what_it_does_not_take_again(tmp_path: Path) -> None:
    """Killed after step 60, with a state of step 40: steps 10 to 40 stay, and none is there twice."""
    place = tmp_path / "metrics.jsonl"
    killed = Account(str(place), silent)
    verdict = {"kind": "validation_judged", "name": "e", "stage": "tune", "step": 60}
    late = [{"kind": "export", "name": "e", "digest": "d", "stage": "tune", "step": 60}, state(60), verdict]
    for note in [step(150, "align"), step(20), step(40), state(40), step(60), *late]:
        killed.add(note)
    again = Account(str(place), silent)
    resumed = {"kind": "resumed", "name": "tune-00000040", "bytes": 1, "seconds": 1.0}
    again.add(resumed)
    again.go_back("tune", 40)
    assert lines(place) == [step(150, "align"), step(20), step(40), state(40), verdict, resumed]
    again.add(step(60, loss=0.5))
    again.close()
    assert [note["step"] for note in lines(place) if note["kind"] == "step"] == [150, 20, 40, 60]
    assert lines(place)[-1] == step(60, loss=0.5)


def test_a_stage_that_begins_anew_takes_back_its_own_steps_alone(tmp_path: Path) -> None:
    account = Account(str(tmp_path / "m.jsonl"), silent)
    for note in (step(150, "align"), step(10), step(20)):
        account.add(note)
    account.go_back("tune", 0)
    assert lines(tmp_path / "m.jsonl") == [step(150, "align")]
    account.go_back("align", 100)
    assert lines(tmp_path / "m.jsonl") == []


def test_a_line_that_a_kill_left_unfinished_is_no_line(tmp_path: Path) -> None:
    place = tmp_path / "metrics.jsonl"
    place.write_text(json.dumps(step(1)) + "\n" + json.dumps(step(2))[:20])
    account = Account(str(place), silent)
    account.add(step(3))
    assert lines(place) == [step(1), step(3)]


def test_a_disk_that_fails_for_a_while_is_one_warning_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    account = Account(str(tmp_path / "m.jsonl"), said.append)
    account.add(step(1))
    with monkeypatch.context() as patched:
        patched.setattr(module, "append", full)
        patched.setattr(module, "write_atomic", full)
        account.add(step(2))
        account.add(step(3))
        with pytest.raises(StorageError, match="full"):
            account.close()
    assert len(said) == 1
    assert "notes were not written, the next one tries again, training goes on: the disk is full" in said[0]
    account.add(step(4))
    assert [note["step"] for note in lines(tmp_path / "m.jsonl")] == [1, 2, 3, 4]


@pytest.mark.pipeline
@pytest.mark.usefixtures("s3_server")
def test_in_s3_the_account_is_written_anew_every_minute_with_every_state_and_at_the_end() -> None:
    uri, clock = f"s3://{BUCKET}/run/metrics.jsonl", Clock()
    account = Account(uri, silent, clock)
    account.add(step(1))
    assert not storage.exists(uri)
    clock.now = 60.0
    account.add(step(2))
    assert lines(uri) == [step(1), step(2)]
    account.add(step(3))
    assert lines(uri) == [step(1), step(2)]
    account.add(state(3))
    assert lines(uri) == [step(1), step(2), step(3), state(3)]
    account.add(step(4))
    account.close()
    again = Account(uri, silent, clock)
    again.go_back("tune", 3)
    again.close()
    assert lines(uri) == [step(1), step(2), step(3), state(3)]
