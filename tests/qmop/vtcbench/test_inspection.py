from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from qmop.drawing import LINE, SIDE
from qmop.loading import derive, load
from qmop.tiny.base import base_path
from qmop.visualize import explain
from qmop.vtcbench.inspection import drawing, timed
from qmop.vtcbench.rendered import RenderedItem


@pytest.fixture(scope="module")
def pruned() -> tuple[Any, Any]:
    return derive(base_path("tiny"), "prune", 16)


def _picture(rendered: RenderedItem) -> Image.Image:
    return Image.open(io.BytesIO(rendered.image)).convert("RGB")


def test_questions_are_timed_as_one_batch(pruned: tuple[Any, Any], small_suite: list[RenderedItem]) -> None:
    asked = small_suite[:3]

    found = timed(*pruned, [_picture(one) for one in asked], [one.item.question for one in asked], rounds=2)

    assert (found.rows, found.images, found.rounds) == (3, 3, 2)
    assert found.stages["prefill"].median > 0
    assert found.stages["first token"].median > found.stages["prefill"].median
    longest = max(len(pruned[1].tokenizer(one.item.question)["input_ids"]) for one in asked)
    assert longest + 16 <= found.prompt_tokens < longest + 16 + 20


def test_what_was_kept_is_drawn_without_the_picture_itself(
    pruned: tuple[Any, Any], small_suite: list[RenderedItem]
) -> None:
    picture, question = _picture(small_suite[0]), small_suite[0].item.question

    found = drawing(*pruned, picture, question)

    assert found is not None
    shown, whole = Image.open(io.BytesIO(found)), explain(*pruned, picture, question)
    assert shown.format == "WEBP"
    assert whole.width - shown.width == SIDE + 12
    assert whole.height - shown.height == LINE + 12


def test_nothing_is_drawn_of_methods_without_anything_to_show(small_suite: list[RenderedItem]) -> None:
    picture, question = _picture(small_suite[0]), small_suite[0].item.question

    assert drawing(*load(base_path("tiny")), picture, question) is None


def test_what_is_kept_inside_the_language_model_is_drawn(small_suite: list[RenderedItem]) -> None:
    picture, question = _picture(small_suite[0]), small_suite[0].item.question
    few, more = (drawing(*derive(base_path("tiny"), "fastv", tokens), picture, question) for tokens in (16, 36))
    assert few is not None
    assert more is not None
    assert few != more
