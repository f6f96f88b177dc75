"""The mailbox, as the class behind the actor, and who listens to it; with Ray it is part of every training test."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError

from pipelines import board
from pipelines.board import Board, listening


def mailbox() -> Any:
    return Board.__ray_metadata__.modified_class()  # type: ignore[attr-defined]


def test_notes_are_kept_until_they_are_acknowledged_and_in_order() -> None:
    ours = mailbox()
    ours.post({"step": 1})
    ours.post({"step": 2})
    mark, notes = ours.take()
    assert notes == [{"step": 1}, {"step": 2}]
    assert ours.take() == (mark, notes), "the answer before may not have arrived"
    ours.post({"step": 3})
    later, notes = ours.take(mark)
    assert notes == [{"step": 3}]
    assert ours.take(mark) == (later, notes)
    assert ours.take(later) == (later, [])
    assert ours.take(mark) == (later, []), "a call that comes late brings nothing back"


def test_a_mark_of_an_earlier_life_acknowledges_nothing() -> None:
    before, after = mailbox(), mailbox()
    for step in range(3):
        before.post({"step": step})
    mark, _ = before.take()
    after.post({"step": 3})
    assert after.take(mark)[1] == [{"step": 3}]


def _near(monkeypatch: pytest.MonkeyPatch, ours: Any, lost: int = 0) -> Any:
    """A board in this process, of whose first answers so many do not arrive."""
    left = [lost]

    def get(answer: Any, timeout: float) -> Any:
        assert timeout > 0
        if left[0]:
            left[0] -= 1
            raise GetTimeoutError
        return answer

    monkeypatch.setattr(board.ray, "get", get)
    monkeypatch.setattr(board, "_POLL_S", 0.01)
    return SimpleNamespace(take=SimpleNamespace(remote=ours.take))


def test_what_an_answer_held_that_did_not_arrive_is_heard_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, heard = mailbox(), list[dict[str, Any]]()
    for step in range(3):
        ours.post({"step": step})
    monkeypatch.setattr(board, "_POLL_S", 0.01)
    with listening(_near(monkeypatch, ours, lost=2), heard.append):
        _wait(lambda: len(heard) == 3)
        ours.post({"step": 3})
    assert heard == [{"step": step} for step in range(4)]


@pytest.mark.parametrize("ending", [None, ZeroDivisionError("of the block")])
@pytest.mark.parametrize("at_the_end", [False, True])
def test_an_error_of_who_hears_is_raised_at_the_end_and_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, ending: Exception | None, at_the_end: bool
) -> None:
    ours, tried = mailbox(), list[dict[str, Any]]()

    def refuse(note: dict[str, Any]) -> None:
        tried.append(note)
        raise KeyError(note["kind"])

    def listen() -> None:
        near = _near(monkeypatch, ours)
        monkeypatch.setattr(board, "_POLL_S", 60.0 if at_the_end else 0.01)
        with listening(near, refuse):
            ours.post({"kind": "unheard of"})
            if not at_the_end:
                _wait(lambda: bool(tried))
            if ending is not None:
                raise ending

    with pytest.raises(KeyError if ending is None else ZeroDivisionError, match="of"):
        listen()
    assert len(tried) == 1


def _wait(moment: Callable[[], bool]) -> None:
    """Until a thread has come to a moment; the test's own limit ends it otherwise."""
    while not moment():
        time.sleep(0.005)
