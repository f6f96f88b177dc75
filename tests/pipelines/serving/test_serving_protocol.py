from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines.serving.errors import ApiError
from pipelines.serving.protocol import ChatRequest, parse_request

MESSAGES = [{"role": "user", "content": "hello"}]


def parse(**fields: Any) -> ChatRequest:
    return parse_request(json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode())


def refusal(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_request(body)
    assert caught.value.status == 400
    return caught.value


def refused(**fields: Any) -> ApiError:
    return refusal(json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode())


def test_answers_are_greedy_unless_asked_otherwise() -> None:
    request = parse()
    assert (request.temperature, request.top_p, request.seed, request.stop, request.stream) == (0, 1, None, [], False)


def test_null_means_absent_everywhere() -> None:
    message = {"role": "assistant", "content": "a", "refusal": None, "tool_calls": None, "audio": None}
    request = parse(temperature=None, stop=None, tools=None, nonsense=None, messages=[message, *MESSAGES])
    assert request == parse(messages=[{"role": "assistant", "content": "a"}, *MESSAGES])


def test_fields_without_effect_are_accepted() -> None:
    inert = {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
    named = [{"role": "user", "content": "hello", "name": "ann"}]
    assert parse(**inert, messages=named) == parse()


@pytest.mark.parametrize(
    ("name", "neutral", "asking"),
    [
        ("n", 1, 2),
        ("frequency_penalty", 0.0, 0.5),
        ("presence_penalty", 0, -1),
        ("logprobs", False, True),
        ("tools", [], [{"type": "function"}]),
        ("response_format", {"type": "text"}, {"type": "json_object"}),
        ("logit_bias", {}, {"5": 1}),
        ("top_logprobs", 0, 5),
        ("functions", [], [{"name": "f"}]),
        ("function_call", "auto", {"name": "f"}),
    ],
)
def test_what_is_not_offered_is_accepted_only_where_it_asks_for_nothing(name: str, neutral: Any, asking: Any) -> None:
    assert parse(**{name: neutral}) == parse()
    error = refused(**{name: asking})
    assert (error.code, error.param) == ("unsupported_parameter", name)


def test_options_of_a_stream_may_say_what_is_so_anyway() -> None:
    usage = {"include_usage": True}
    assert parse(stream_options={**usage, "include_obfuscation": False}) == parse(stream_options=usage)
    error = refused(stream_options={"include_obfuscation": True})
    assert (error.code, error.param) == ("unsupported_parameter", "stream_options.include_obfuscation")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temprature": 0.5}, "temprature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stream": "perhaps"}, "stream"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x", "color": 1}]}, "messages.0.color"),
        ({"messages": [["user"]]}, "messages.0"),
        ({"messages": MESSAGES * 257}, "messages"),
        ({"stream_options": {"include_usage": True, "x": 1}}, "stream_options.x"),
    ],
)
def test_what_is_wrong_is_refused_by_the_fields_name(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert error.param == param
    assert error.code == (
        "unknown_parameter" if param.rsplit(".", maxsplit=1)[-1] in {"temprature", "color", "x"} else "invalid_value"
    )


def test_a_plain_text_is_one_text_part() -> None:
    parts = [{"type": "text", "text": "hello"}]
    assert parse(messages=[{"role": "user", "content": parts}]) == parse()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"model": NaN}', b'{"seed": ' + b"9" * 5000 + b"}"],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    assert refusal(body).code in {"invalid_json", "invalid_value"}


def test_one_stop_text_or_several() -> None:
    assert parse(stop="END").stop == ["END"]
    assert parse(stop=["a", "b"]).stop == ["a", "b"]
