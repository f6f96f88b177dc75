from __future__ import annotations

from typing import Any

import pytest

from qmop.queries import chosen_query, draw_turn, has_image, message_text

IMAGE: dict[str, Any] = {"type": "image"}


def said(role: str, text: str, *, image: bool = False) -> dict[str, Any]:
    return {"role": role, "content": [*([IMAGE] if image else []), {"type": "text", "text": text}]}


TALK = [
    {"role": "system", "content": "be brief"},
    said("user", "hello"),
    said("assistant", "hi"),
    said("user", "what is this ?", image=True),
    said("assistant", "a dog"),
    {"role": "user", "content": "what colour ?"},
]


@pytest.mark.parametrize(
    ("policy", "question"),
    [
        ("latest", "what colour ?"),
        ("sticky", "what is this ?"),
        ("all", "hello what is this ? what colour ?"),
    ],
)
def test_the_policy_chooses_the_question_and_never_an_answer(policy: Any, question: str) -> None:
    assert chosen_query(TALK, policy) == question


def test_without_pictures_sticky_is_the_first_turn() -> None:
    assert chosen_query([said("user", "a"), said("assistant", "b"), said("user", "c")], "sticky") == "a"


def test_nobody_asked() -> None:
    assert chosen_query([{"role": "system", "content": "be brief"}]) == ""


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="query_policy is 'last': choose one of latest, sticky, all"):
        chosen_query(TALK, "last")  # type: ignore[arg-type]


def test_messages_of_both_forms_are_read() -> None:
    assert message_text({"role": "user", "content": None}) == ""
    assert message_text(said("user", "a b", image=True)) == "a b"
    assert [has_image(message) for message in TALK] == [False, False, False, True, False, False]


def test_each_answered_turn_is_drawn_as_often() -> None:
    turns = [{"role": role, "text": f"{role} {turn}"} for turn in range(3) for role in ("user", "assistant")]
    drawn = [draw_turn(turns, 3, position) for position in range(600)]
    assert drawn == [draw_turn(turns, 3, position) for position in range(600)]
    assert all(150 < drawn.count((f"user {turn}", f"assistant {turn}")) < 250 for turn in range(3))
