"""The mailbox, as the class behind the actor; with Ray it is part of every training test."""

from pipelines.board import Board


def test_notes_are_taken_once_and_in_order() -> None:
    board = Board.__ray_metadata__.modified_class()  # type: ignore[attr-defined]
    board.post({"step": 1})
    board.post({"step": 2})
    assert board.take() == [{"step": 1}, {"step": 2}]
    assert board.take() == []
