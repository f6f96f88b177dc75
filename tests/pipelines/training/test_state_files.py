"""States out of an engine and back: bit for bit, one under way at most, and trouble with files ends no training."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cluster.storage import StorageError
from pipelines.training import state_files
from pipelines.training.signing import KEY_VARIABLE
from pipelines.training.state_loading import load_state
from pipelines.training.states import latest, read_state
from tests.pipelines.training.engines import FACTS, engine, save, train, writer


def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    notes: list[dict[str, Any]] = []
    first, states = engine(), writer(tmp_path, notes)
    train(first, range(5))
    save(first, states, 5)
    undisturbed = train(first, range(5, 9))  # while the state is on its way
    states.wait()
    found = latest(str(tmp_path), ("align", "tune"))
    assert found.uri is not None
    assert found.card is not None
    assert (found.card.step, found.card.adam_step, found.card.position) == (5, 5, 80)
    assert set(found.card.parameters) == {"0.weight", "2.weight", "2.bias"}
    second = engine()  # what is frozen comes from the same start
    assert load_state(second, found.uri, found.card) == notes[0]["bytes"]
    assert train(second, range(5, 9)) == undisturbed
    for one, other in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_state_before_the_first_step_can_be_loaded(tmp_path: Path) -> None:
    states = writer(tmp_path, [])
    save(engine(), states, 0)
    states.wait()
    uri = str(tmp_path / "tune-00000000")
    second = engine(seed=0)
    load_state(second, uri, read_state(uri))
    assert train(second, range(3)) == train(engine(), range(3))


def test_as_many_states_stay_as_asked_for(tmp_path: Path) -> None:
    ours, notes = engine(), []
    states = writer(tmp_path, notes)
    for step in (1, 2, 3, 4):
        save(ours, states, step)
    states.wait()
    assert [note["name"] for note in notes] == [f"tune-0000000{step}" for step in (1, 2, 3, 4)]
    cards = sorted(path.parent.name for path in tmp_path.glob("*/state.json"))
    assert cards == ["tune-00000003", "tune-00000004"]
    assert sorted(path.name for path in (tmp_path / "tune-00000004").iterdir()) == [
        "part-00000-of-00001.safetensors",
        "state.json",
    ]


def visible(folder: Path) -> list[int]:
    return sorted(int(path.parent.name[-8:]) for path in folder.glob("*/state.json"))


def test_a_fresh_state_stays_where_newer_ones_were_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, states = engine(), writer(tmp_path, [])
    for step in (20, 40):
        save(ours, states, step)
    states.wait()
    monkeypatch.setenv(KEY_VARIABLE, "secret")  # from now on neither of them can be used
    for step, expected in ((10, [10, 20, 40]), (15, [10, 15, 20, 40]), (17, [15, 17, 20, 40])):
        save(ours, states, step)
        states.wait()
        assert visible(tmp_path) == expected
        found = latest(str(tmp_path), ("align", "tune"))
        assert found.card is not None
        assert found.card.step == step


def test_a_damaged_state_does_not_count_among_those_that_stay(tmp_path: Path) -> None:
    ours, states = engine(), writer(tmp_path, [])
    for step in (1, 2):
        save(ours, states, step)
    states.wait()
    (tmp_path / "tune-00000002" / "part-00000-of-00001.safetensors").write_bytes(b"cut")
    for step, expected in ((3, [1, 2, 3]), (4, [3, 4])):
        save(ours, states, step)
        states.wait()
        assert visible(tmp_path) == expected


def test_at_most_one_state_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, may, running = state_files._uploaded, threading.Event(), []

    def slow(path: Path, uri: str) -> None:
        running.append(uri)
        assert may.wait(20)
        real(path, uri)

    monkeypatch.setattr(state_files, "_uploaded", slow)
    ours, states = engine(), writer(tmp_path, [])
    save(ours, states, 1)
    threading.Timer(0.3, may.set).start()
    stood = states.save(ours, stage="tune", step=2, position=0, **FACTS)
    assert stood > 0.1  # it waited for the first
    assert len(running) >= 1
    states.wait()
    assert read_state(str(tmp_path / "tune-00000002")).step == 2


def test_trouble_with_the_store_is_told_and_the_state_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, notes = engine(), []
    states = writer(tmp_path, notes)
    save(ours, states, 1)
    states.wait()

    def full(*_: Any) -> None:
        raise StorageError("No space left on device.")

    monkeypatch.setattr(state_files, "put_file", full)
    monkeypatch.setattr(state_files._uploaded.retry, "wait", lambda _: 0.0)
    save(ours, states, 2)
    train(ours, range(2))
    states.wait()
    assert notes[1] == {"kind": "state_failed", "name": "tune-00000002", "rank": 0, "error": "No space left on device."}
    found = latest(str(tmp_path), ("tune",))
    assert found.card is not None
    assert found.card.step == 1


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes: to a writer the same as a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_the_next_state_is_written(tmp_path: Path) -> None:
    ours, notes = engine(), []
    states = writer(tmp_path, notes)
    with files_up_to(600):  # the part has more
        save(ours, states, 1)
        states.wait()
    save(ours, states, 2)
    states.wait()
    assert [(note["kind"], note["name"]) for note in notes] == [
        ("state_failed", "tune-00000001"),
        ("state", "tune-00000002"),
    ]
    assert "File too large" in notes[0]["error"]
    assert visible(tmp_path) == [2]


def test_a_file_that_cannot_be_read_back_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(tensors: dict[str, torch.Tensor], path: Path) -> None:
        assert path.is_relative_to(tmp_path), "on the disk that has room for states"
        save_file(tensors, path)
        path.write_bytes(path.read_bytes()[:-1])

    monkeypatch.setattr(state_files, "save_file", cut)
    notes: list[dict[str, Any]] = []
    states = writer(tmp_path, notes)
    save(engine(), states, 1)
    states.wait()
    assert notes[0]["kind"] == "state_failed"
    assert visible(tmp_path) == []


def test_a_store_that_stumbles_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tries = state_files.put_file, []

    def stumbling(path: Path, uri: str) -> None:
        tries.append(uri)
        if len(tries) < 3:
            raise StorageError("try again")
        real(path, uri)

    monkeypatch.setattr(state_files, "put_file", stumbling)
    monkeypatch.setattr(state_files._uploaded.retry, "wait", lambda _: 0.0)
    notes: list[dict[str, Any]] = []
    states = writer(tmp_path, notes)
    save(engine(), states, 1)
    states.wait()
    assert len(tries) == 3
    assert notes[0]["kind"] == "state"


def test_a_process_that_gives_nothing_is_waited_for_only_so_long(tmp_path: Path) -> None:
    notes: list[dict[str, Any]] = []
    states = writer(tmp_path, notes, world=2, patience_s=0.3)
    save(engine(), states, 1)
    states.wait()
    assert notes[0]["kind"] == "state_failed"
    assert "part-00001-of-00002.safetensors.t.json did not appear within 0.3 s" in notes[0]["error"]
    assert latest(str(tmp_path), ("tune",)).uri is None
    assert not list((tmp_path / "tune-00000001").iterdir()), "what nobody will use takes no room"


def test_a_process_that_cannot_write_its_part_ends_the_waiting_for_it(tmp_path: Path) -> None:
    """Rank 1 gives nothing and says nothing; rank 2 fails, which nobody behind rank 1 must wait for."""
    notes: list[dict[str, Any]] = []
    first, third = (writer(tmp_path, notes, rank=rank, world=3) for rank in (0, 2))
    with files_up_to(600):
        save(engine(), third, 1)
        third.wait()
    began = time.monotonic()
    save(engine(), first, 1)
    first.wait()
    assert time.monotonic() - began < 10, "of 20 s of patience"
    assert [(note["kind"], note["rank"]) for note in notes] == [("state_failed", 2), ("state_failed", 0)]
    assert "File too large" in notes[0]["error"]
    assert notes[1]["error"] == f"the process of rank 2 could not give its part ({notes[0]['error']})"


def test_all_parts_make_a_state_whatever_their_order(tmp_path: Path) -> None:
    notes: list[dict[str, Any]] = []
    first, second = (writer(tmp_path, notes, rank=rank, world=2) for rank in (0, 1))
    save(engine(), first, 1)
    save(engine(), second, 1)
    for states in (first, second):
        states.wait()
    assert [note["kind"] for note in notes] == ["state"]
    assert len(read_state(str(tmp_path / "tune-00000001")).parts) == 2


def test_trouble_with_older_states_is_told_and_makes_the_new_one_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(uri: str) -> None:
        raise StorageError(f"{uri} refuses us")

    notes: list[dict[str, Any]] = []
    ours, states = engine(), writer(tmp_path, notes, keep=1)
    save(ours, states, 1)
    states.wait()
    monkeypatch.setattr(state_files, "forget", refused)
    save(ours, states, 2)
    states.wait()
    assert [note["kind"] for note in notes] == ["state", "state", "states_kept"]
    assert "tune-00000001 refuses us" in notes[2]["error"]
    assert visible(tmp_path) == [1, 2]
