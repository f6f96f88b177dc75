"""A validation error of a request as one sentence: the field, its value and what it should be instead."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipelines.serving.errors import ApiError, bad_request

_LONGEST_SHOWN = 60
_MOST_BITS = 200
_OBJECT_ERRORS = frozenset({"model_type", "model_attributes_type"})
_PARTS = 4  # messages.PLACE.content.INDEX


def refusal(error: ValidationError) -> ApiError:
    """The first fault of a request.

    Args:
        error: of a model whose one union is that of a message's parts, told apart by their type.

    Returns:
        A 400 whose `param` is the field's dotted path in the request as it was sent.
    """
    first = error.errors(include_url=False)[0]
    param, sentence = _sentence(first)
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
    return bad_request(sentence, code=code, param=param)


def _sentence(error: ErrorDetails) -> tuple[str, str]:
    kind, param, context = error["type"], _path(error), error.get("ctx", {})
    if kind == "missing":
        return param, f"{param} is missing: add it."
    if kind == "extra_forbidden":
        return param, f"{param} is not a field of this request: correct its spelling, or leave it out."
    if kind == "union_tag_not_found":
        return f"{param}.type", f"{param}.type is missing: add 'text' or 'image_url'."
    if kind == "union_tag_invalid":
        shown, expected = _shown(context["tag"]), context["expected_tags"].replace(", ", " or ")
        return f"{param}.type", f"{param}.type is {shown}: it should be {expected}."
    return param, f"{param} is {_shown(error['input'])}: {_wish(error)}."


def _path(error: ErrorDetails) -> str:
    """Where the field stands in what was sent; behind a part pydantic also names the part's type."""
    steps = list(error["loc"])
    if len(steps) > _PARTS and (steps[0], steps[2]) == ("messages", "content"):
        del steps[_PARTS]
    return ".".join(map(str, steps))


def _wish(error: ErrorDetails) -> str:
    if error["type"] in _OBJECT_ERRORS:
        return "it should be an object, {...}"
    if error["type"] == "too_long":
        return f"it should have at most {error['ctx']['max_length']} entries"
    if error["type"] == "too_short":
        return f"it should have at least {error['ctx']['min_length']}"
    message = error["msg"]
    return f"it {message.removeprefix('Input ')}" if message.startswith("Input ") else message[:1].lower() + message[1:]


def _shown(value: Any) -> str:
    """A value as JSON would have it, but never long: it may be a picture, or a number of a million digits."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _LONGEST_SHOWN else f"{value[:_LONGEST_SHOWN]!r}..."
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return "a very large number"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, dict) else repr(value)
