from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from pipelines.serving.conversation import draft_of, sampling_of
from pipelines.serving.errors import ApiError
from pipelines.serving.images import ImageLimits
from pipelines.serving.protocol import ChatRequest

LIMITS = ImageLimits(max_bytes=10_000, max_pixels=10_000)


def request(*messages: dict[str, Any], **fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": list(messages), **fields})


def user(*parts: str) -> dict[str, Any]:
    content = [
        {"type": "image_url", "image_url": {"url": part}}
        if part.startswith("data:")
        else {"type": "text", "text": part}
        for part in parts
    ]
    return {"role": "user", "content": content}


def test_pictures_keep_their_places_and_the_last_question_guides(data_url: Callable[..., str]) -> None:
    red, blue = (data_url(Image.new("RGB", (8, 8), colour)) for colour in ("red", "blue"))
    asked = request(
        {"role": "developer", "content": "be brief"},
        user(red, "what is this"),
        {"role": "assistant", "content": "a square"},
        user("and", blue, "that"),
    )
    prompt = draft_of(asked, LIMITS, max_images=2).prompt()
    assert [message["role"] for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert prompt.messages[3]["content"] == [
        {"type": "text", "text": "and"},
        {"type": "image"},
        {"type": "text", "text": "that"},
    ]
    assert [image.getpixel((0, 0)) for image in prompt.images] == [(255, 0, 0), (0, 0, 255)]
    assert prompt.question == "and\nthat"


def test_a_faulty_picture_is_named_by_its_place(data_url: Callable[..., str]) -> None:
    fine = data_url(Image.new("RGB", (8, 8)))
    with pytest.raises(ApiError) as caught:
        draft_of(request(user(fine, "look"), user("x", "data:image/png;base64,AAAA")), LIMITS, max_images=2)
    assert caught.value.param == "messages.1.content.1.image_url"


def test_too_many_pictures_are_refused_before_any_is_decoded() -> None:
    with pytest.raises(ApiError, match="holds 2 images, but at most 1") as caught:
        draft_of(request(user("data:broken", "data:broken", "look")), LIMITS, max_images=1)
    assert caught.value.code == "too_many_images"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([user("a"), {"role": "assistant", "content": "b"}], "messages.1.role"),
        ([user("  ")], "messages.0.content"),
        ([user("data:broken")], "messages.0.content"),
        ([{**user("data:broken"), "role": "system"}, user("a")], "messages.0.content"),
    ],
)
def test_a_conversation_that_asks_nothing_is_refused(messages: list[dict[str, Any]], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        draft_of(request(*messages), LIMITS, max_images=1)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "granted"),
    [
        ({}, 50),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 9}, 9),
        ({"max_tokens": 7, "max_completion_tokens": 9}, 7),
        ({"max_tokens": 5000}, 50),
    ],
)
def test_the_cap_on_new_tokens_holds(fields: dict[str, int], granted: int) -> None:
    assert sampling_of(request(user("a"), **fields), max_new_tokens=50).max_new_tokens == granted


@pytest.mark.parametrize("stop", [["a"] * 5, [""], ["x" * 65]])
def test_stop_texts_that_cannot_be_honoured_are_refused(stop: list[str]) -> None:
    with pytest.raises(ApiError) as caught:
        sampling_of(request(user("a"), stop=stop), max_new_tokens=50)
    assert caught.value.param == "stop"
