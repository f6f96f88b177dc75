"""What a client reads of a mistake in its request; met through `parse_request`, which makes the requests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.serving.errors import ApiError
from pipelines.serving.protocol import parse_request

MESSAGES = [{"role": "user", "content": "hello"}]
LARGE = "x" * 100_000


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_request(json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode())
    assert caught.value.status == 400
    return caught.value


def picture(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": url}


@pytest.mark.parametrize(
    ("part", "field", "said"),
    [
        ({"type": "input_audio"}, ".type", "is 'input_audio': it should be 'text' or 'image_url'"),
        ({"type": LARGE}, ".type", f"is '{'x' * 60}'...: it should be 'text' or 'image_url'"),
        ({"text": "untyped"}, ".type", "is missing: add 'text' or 'image_url'"),
        ("bare", "", "is 'bare': it should be an object, {...}"),
        ({"type": "image_url"}, ".image_url", "is missing: add it"),
        (
            picture("data:x"),
            ".image_url",
            'is \'data:x\': it should be an object such as {"url": "data:image/png;base64,...',
        ),
        (picture({"url": 5}), ".image_url.url", "is 5: it should be a valid string"),
        (
            picture({"url": "x", "detail": "ultra"}),
            ".image_url.detail",
            "is 'ultra': it should be 'auto', 'low' or 'high'",
        ),
        (picture({"url": "x", "size": 1}), ".image_url.size", "is not a field of this request: correct its spelling"),
        ({"type": "text", "text": {"a": 1}}, ".text", "is an object: it should be a valid string"),
        ({"type": "text", "text": "x", "image_url": 1}, ".image_url", "is not a field of this request"),
    ],
)
def test_a_malformed_part_is_named_as_it_was_sent(part: Any, field: str, said: str) -> None:
    error = refused(messages=[*MESSAGES, {"role": "user", "content": [{"type": "text", "text": "a"}, part]}])
    assert error.param == f"messages.1.content.1{field}"
    assert error.message.startswith(f"{error.param} {said}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages.0.content is 5: it should be a text or a list of parts.",
        ),
        ({"messages": [{"role": "user", "content": {}}]}, "messages.0.content is an object: it should be a text or a"),
        ({"messages": [["user"]]}, "messages.0 is a list of 1: it should be an object, {...}."),
        ({"messages": []}, "messages is a list of 0: it should have at least 1."),
        ({"messages": MESSAGES * 257}, "messages is a list of 257: it should have at most 256 entries."),
        ({"stop": [1]}, "stop.0 is 1: it should be a valid string."),
        ({"stop": 1}, "stop is 1: it should be a text or a list of texts."),
        ({"temperature": 9}, "temperature is 9: it should be less than or equal to 2."),
        ({"stream": "perhaps"}, "stream is 'perhaps': it should be a valid boolean"),
        ({"seed": 10**80}, "seed is a very large number: it should be less than 9223372036854775808."),
        ({"seed": "9" * 5000}, f"seed is '{'9' * 60}'...: unable to parse"),
        ({"top_p": False}, "top_p is false: it should be greater than 0."),
        ({"modle": 1}, "modle is not a field of this request: correct its spelling, or leave it out."),
    ],
)
def test_the_field_its_value_and_the_way_out_are_named(fields: dict[str, Any], message: str) -> None:
    error = refused(**fields)
    assert error.message.startswith(message)
    assert len(error.message) < 250


@pytest.mark.parametrize("fields", [{"messages": [{"role": "user", "content": [1] * 5000}]}, {"stop": [1] * 5000}])
def test_a_list_of_nothing_but_mistakes_costs_no_more_than_its_first(fields: dict[str, Any]) -> None:
    cause = refused(**fields).__cause__
    assert isinstance(cause, ValidationError)
    assert cause.error_count() == 1
