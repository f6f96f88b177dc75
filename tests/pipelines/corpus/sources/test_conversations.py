"""Texts in the forms of other people."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.corpus.samples import BadSampleError
from pipelines.corpus.sources.conversations import first_text, from_files, messages_of, speaks_of_image


@pytest.mark.parametrize("nothing", [None, "", "  \n", []])
def test_nothing_is_no_message(nothing: object) -> None:
    assert messages_of(nothing, "Describe.") == []


@pytest.mark.parametrize(
    "turn",
    [
        {"from": "human", "value": "<image>\nQ "},
        {"role": "user", "content": "Q"},
        {"role": "user", "text": "Q"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]},
        {"from": None, "role": "user", "value": None, "content": "Q"},
    ],
)
def test_a_turn_has_many_spellings(turn: dict[str, Any]) -> None:
    assert messages_of([turn], "") == [{"role": "user", "text": "Q"}]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (7, "bad_record"),
        ({"from": "human"}, "bad_record"),
        (["words"], "bad_record"),
        ([{"from": "system", "value": "x"}], "bad_record"),
        ([{"from": ["human"], "value": "x"}], "bad_record"),
        ([{"role": "user", "content": ["x"]}], "bad_record"),
        ([{"role": "user", "content": [{"type": "video"}]}], "bad_record"),
        ([{"role": "user"}], "no_caption"),
    ],
)
def test_what_is_no_conversation_is_named(value: object, reason: str) -> None:
    with pytest.raises(BadSampleError) as caught:
        messages_of(value, "")
    assert caught.value.reason == reason


def test_an_image_is_spoken_of_in_text_or_pieces() -> None:
    assert speaks_of_image([{"from": "human", "value": "a <image>"}])
    assert speaks_of_image([{"role": "user", "content": [{"type": "image"}]}])
    assert not speaks_of_image([{"from": "human", "value": "image"}])
    assert not speaks_of_image("a caption with <image>")


def test_the_most_telling_field_speaks() -> None:
    turns = [{"from": "human", "value": "Q"}]
    assert first_text({"text": "t", "caption": "c", "conversations": turns}) == turns
    assert first_text({"text": "t", "caption": None, "conversations": []}) == "t"
    assert first_text({}) is None


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"txt": b"\xff"}, "bad_record"),
        ({"json": b"[" * 100_000}, "bad_record"),
        ({"json": b"x" * 1_000_001}, "too_large"),
        ({"json": b"[]", "txt": b" "}, "no_caption"),
    ],
)
def test_files_that_say_nothing_are_named(files: dict[str, bytes], reason: str) -> None:
    with pytest.raises(BadSampleError) as caught:
        from_files(files, None, "")
    assert caught.value.reason == reason


def test_a_table_speaks_last() -> None:
    assert from_files({"txt": b"file"}, "table", "P")[0][1]["text"] == "file"
    assert from_files({"json": b'{"id": 3}'}, "table", "P") == (
        [{"role": "user", "text": "P"}, {"role": "assistant", "text": "table"}],
        {"id": 3},
    )
