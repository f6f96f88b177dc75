from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qmop.harness import Until, as_pictures, batches, conversation, cut, generation_options, kind_of, spaced
from qmop.tiny.tokenizer import language_tokenizer


def parts(context: str, pictures: int) -> list[Any]:
    message, _ = conversation(context, pictures)
    assert message["role"] == "user"
    return [part.get("text", part["type"]) for part in message["content"]]


@pytest.mark.parametrize(
    ("context", "pictures", "content", "question"),
    [
        ("what is it ?", 0, ["what is it ?"], "what is it ?"),
        ("what is it ?", 2, ["image", "image", "what is it ?"], "what is it ?"),
        ("is <image> before <image> ?", 2, ["is", "image", "before", "image", "?"], "is before ?"),
        ("<image>\nwhat ?", 1, ["image", "what ?"], "what ?"),
        ("", 1, ["image"], ""),
    ],
)
def test_pictures_stand_where_the_task_marks_them_or_first(
    context: str, pictures: int, content: list[str], question: str
) -> None:
    assert parts(context, pictures) == content
    assert conversation(context, pictures)[1] == question


def test_marks_that_do_not_match_the_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="marks 2 places with <image> but shows 1 pictures: correct the task"):
        conversation("<image> <image> which ?", 1)


def test_pictures_become_rgb_and_videos_are_refused() -> None:
    grey = Image.fromarray(np.full((4, 6), 7, dtype=np.uint8))
    (picture,) = as_pictures([grey])
    assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (6, 4), (7, 7, 7))
    assert as_pictures(None) == ()
    with pytest.raises(ValueError, match="shows a str, but only pictures are read"):
        as_pictures([grey, "film.mp4"])


@pytest.mark.parametrize(
    ("prompt", "continuation", "result"),
    [("ASSISTANT:", "yes", " yes"), ("ASSISTANT: ", "yes", "yes"), ("ASSISTANT:", " yes", " yes"), ("A:", "", "")],
)
def test_a_continuation_is_set_off_once(prompt: str, continuation: str, result: str) -> None:
    assert spaced(prompt, continuation) == result


def test_batches_are_of_one_kind_and_begin_with_the_longest() -> None:
    kinds, lengths = ["a", "b", "a", "a", "b"], [1, 5, 3, 2, 6]
    assert list(batches(kinds, lengths, 2)) == [[2, 3], [0], [4, 1]]
    assert list(batches(kinds, lengths, 1)) == [[2], [3], [0], [4], [1]]
    assert list(batches([], [], 2)) == []


def test_equal_options_are_of_one_kind() -> None:
    assert kind_of({"until": ["a"], "temperature": 0}) == kind_of({"temperature": 0, "until": ["a"]})
    assert kind_of({"until": ["a"]}) != kind_of({"until": ["b"]})


@pytest.mark.parametrize(
    ("task", "options", "until"),
    [
        ({}, {"max_new_tokens": 9, "do_sample": False}, []),
        ({"until": "\n", "max_new_tokens": 3}, {"max_new_tokens": 3, "do_sample": False}, ["\n"]),
        ({"until": ["a", "b"], "top_p": 0.5, "temperature": 0}, {"max_new_tokens": 9, "do_sample": False}, ["a", "b"]),
        (
            {"temperature": 0.7, "top_p": 0.5, "top_k": None, "num_beams": 2},
            {"max_new_tokens": 9, "do_sample": True, "temperature": 0.7, "top_p": 0.5, "num_beams": 2},
            [],
        ),
        ({"temperature": 0.7, "do_sample": False}, {"max_new_tokens": 9, "do_sample": False}, []),
        ({"until": ["", "b"]}, {"max_new_tokens": 9, "do_sample": False}, ["b"]),
        ({"image_aspect_ratio": "original"}, {"max_new_tokens": 9, "do_sample": False}, []),
    ],
)
def test_a_tasks_options_become_those_of_generate(
    task: dict[str, Any], options: dict[str, Any], until: list[str]
) -> None:
    assert generation_options(task, 9) == (options, until)


@pytest.mark.parametrize(
    ("until", "result"),
    [([], "one. two\n"), (["\n"], "one. two"), (["two", ". "], "one"), (["three"], "one. two\n")],
)
def test_a_text_ends_at_the_first_stop_string(until: list[str], result: str) -> None:
    assert cut("one. two\n", until) == result


def test_rows_end_where_a_stop_string_was_written_and_not_where_it_was_asked() -> None:
    words = language_tokenizer()
    asked = words("red blue red blue", add_special_tokens=False)["input_ids"]
    until = Until(words, ["blue red", "\n"])
    written = torch.tensor([asked + words(text)["input_ids"] for text in ("red red green", "blue red red")])
    ended = [until(written[:, : len(asked) + steps], None).tolist() for steps in (1, 2, 3)]
    assert ended == [[False, False], [False, True], [False, True]]


def test_only_the_end_of_a_row_is_looked_at() -> None:
    words = language_tokenizer()
    until, ids = Until(words, ["red"]), torch.tensor([words("red" + 40 * " green")["input_ids"]])
    ended = [until(ids[:, : steps + 1], None).item() for steps in range(ids.shape[1])]
    assert (ended[0], ended[-1]) == (True, False)
