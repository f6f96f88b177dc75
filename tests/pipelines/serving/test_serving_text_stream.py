from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.serving.text_stream import Detokenizer, StopText

WORDS = ["a", "red", "circle", "left"]


def decode_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def decode_words(ids: Sequence[int]) -> str:
    return " ".join(WORDS[index] for index in ids)


def chopped(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in itertools.pairwise(places)]


@settings(deadline=None)
@given(st.text(max_size=30))
def test_characters_of_several_tokens_come_whole(text: str) -> None:
    detokenizer = Detokenizer(decode_bytes)
    pieces = [detokenizer.push([byte]) for byte in text.encode()]
    assert "".join([*pieces, detokenizer.push([], final=True)]) == text
    assert not any("\ufffd" in piece for piece in pieces if "\ufffd" not in text)


def test_an_unfinished_character_comes_out_at_the_end_only() -> None:
    detokenizer = Detokenizer(decode_bytes)
    assert [detokenizer.push([byte]) for byte in "é".encode()[:1]] == [""]
    assert detokenizer.push([], final=True) == "\ufffd"


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=8))
def test_spaces_between_tokens_are_those_of_the_whole_text(ids: list[int]) -> None:
    detokenizer = Detokenizer(decode_words)
    assert "".join(detokenizer.push([index]) for index in ids) == decode_words(ids)


@settings(deadline=None)
@given(
    st.text("ab#", max_size=20),
    st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 100), max_size=10),
)
@example("abc", ["abc", "b"], [])
def test_a_text_ends_before_its_first_stop_however_it_is_chopped_up(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    stream = StopText(stops)
    shown = "".join([*(stream.push(piece) for piece in chopped(text, cuts)), stream.push("", final=True)])
    assert shown == (text[: min(ends)[1]] if ends else text)
    assert stream.reached == bool(ends)


def test_nothing_that_may_become_a_stop_is_shown_and_everything_else_at_once() -> None:
    stream = StopText(["END"])
    assert [stream.push(piece) for piece in ("one ", "E", "N", "x", "EN", "D two")] == ["one ", "", "", "ENx", "", ""]
    assert stream.reached
