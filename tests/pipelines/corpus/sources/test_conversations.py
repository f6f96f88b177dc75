"""Texts in the forms of other people."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.corpus.samples import BadSampleError
from pipelines.corpus.sources.conversations import check_places, first_text, from_files, image_places, messages_of


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
    assert image_places([{"from": "human", "value": "a <image> <image>"}, {"from": "gpt", "value": "<image>"}]) == 3
    assert image_places([{"role": "user", "content": [{"type": "image"}]}]) == 1
    assert image_places([{"from": "human", "value": "image"}]) == 0
    assert image_places("a caption with <image>") == 0


@pytest.mark.parametrize(
    ("places", "images", "listed", "reason"),
    [
        (0, 3, True, None),
        (3, 3, True, None),
        (2, 3, True, "bad_record"),
        (4, 3, False, "bad_record"),
        (2, 1, False, None),
        (2, 1, True, "bad_record"),
        (1, 0, False, "missing_image"),
        (0, 0, False, None),
    ],
)
def test_each_image_has_a_place_or_none_has(places: int, images: int, listed: bool, reason: str | None) -> None:
    turns = [{"from": "human", "value": "<image> and"}] * places + [{"from": "gpt", "value": "x"}]
    if reason is None:
        check_places(turns, images, listed=listed)
        return
    with pytest.raises(BadSampleError) as caught:
        check_places(turns, images, listed=listed)
    assert caught.value.reason == reason


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
