"""The part of OpenAI's chat API that is spoken here.

Deliberate choices about fields of a request:

- null means absent, everywhere.
- Fields that cannot change an answer (`user`, `metadata`, ...) are accepted and have no effect.
- Fields whose effect is not offered (`tools`, `n`, penalties, ...) are accepted at their neutral value only.
- Any other field is refused by name, so that a misspelt one does not vanish.
- `temperature` defaults to 0: answers are greedy unless asked otherwise, by at least 0.00001.
- `max_tokens` above the service's cap gets the cap; `finish_reason` "length" says when it was reached.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError
from pydantic_core import PydanticCustomError, from_json

from pipelines.serving.errors import bad_request
from pipelines.serving.refusals import refusal

_INERT = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
})  # fmt: skip
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
_NEUTRAL_IN_STREAM_OPTIONS: dict[str, tuple[Any, ...]] = {"include_obfuscation": (False,)}
_INERT_IN_MESSAGE = frozenset({"name", "annotations"})
_MAX_MESSAGES = 256


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _as_parts(content: Any) -> Any:
    if isinstance(content, list):
        return content
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    raise PydanticCustomError("content_type", "Input should be a text or a list of parts")


def _as_texts(stop: Any) -> Any:
    if isinstance(stop, list):
        return stop
    if isinstance(stop, str):
        return [stop]
    raise PydanticCustomError("stop_type", "Input should be a text or a list of texts")


def _as_picture(picture: Any) -> Any:
    if isinstance(picture, dict):
        return picture
    raise PydanticCustomError("picture_type", 'Input should be an object such as {"url": "data:image/png;base64,..."}')


class TextPart(_Strict):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class ImageURL(_Strict):
    """A picture's data URL; `detail` is accepted and has no effect, since the compressor sets the token count."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Strict):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(_as_picture)]


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """One turn of the conversation; "developer" is read as "system", and a plain text as one text part."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[ContentPart], FailFast(), BeforeValidator(_as_parts)]

    @property
    def text(self) -> str:
        """The text parts, one per line."""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))


class StreamOptions(_Strict):
    """Options of a stream."""

    include_usage: bool = False


class ChatRequest(_Strict):
    """A request to `POST /v1/chat/completions`."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=_MAX_MESSAGES)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[str], FailFast(), BeforeValidator(_as_texts)] = Field(default_factory=list)


class ModelCard(BaseModel):
    """One entry of `GET /v1/models`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "qmop"


class ModelList(BaseModel):
    """The answer of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Usage(BaseModel):
    """Tokens read and written; visual tokens count as the language model read them, compressed."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class VisualReport(BaseModel):
    """The extension field `qmop`: what the compression did to the pictures of this request."""

    method: str
    visual_tokens: int
    visual_tokens_original: int
    branch_weights: dict[str, float] | None = None


class AnswerMessage(BaseModel):
    """The answer of a completion."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The one choice of a completion."""

    index: Literal[0] = 0
    message: AnswerMessage
    finish_reason: str
    logprobs: None = None


class ChatCompletion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    qmop: VisualReport


class Delta(BaseModel):
    """What a chunk adds to the answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """The one choice of a chunk."""

    index: Literal[0] = 0
    delta: Delta
    finish_reason: str | None = None
    logprobs: None = None


class ChatChunk(BaseModel):
    """One event of a stream; `qmop` comes with the finish reason, `usage` in the chunk without choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    qmop: VisualReport | None = None


def parse_request(body: bytes) -> ChatRequest:
    """Read a request body.

    Raises:
        ApiError: 400, naming the field at fault.
    """
    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise bad_request(f"The body is not JSON ({error}): send one JSON object.", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise bad_request("The body is JSON but not an object: send {...}.", code="invalid_json")
    try:
        return ChatRequest.model_validate(_offered(_without_nulls(fields)))
    except ValidationError as error:
        raise refusal(error) from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _offered(fields: dict[str, Any]) -> dict[str, Any]:
    """Drop what has no effect, and refuse what asks for something not offered."""
    kept = {name: value for name, value in _without_neutral(fields, _NEUTRAL).items() if name not in _INERT}
    if isinstance(kept.get("messages"), list):
        kept["messages"] = [_plain_message(message) for message in kept["messages"]]
    if isinstance(options := kept.get("stream_options"), dict):
        kept["stream_options"] = _without_neutral(options, _NEUTRAL_IN_STREAM_OPTIONS, "stream_options.")
    return kept


def _without_neutral(fields: dict[str, Any], offered: dict[str, tuple[Any, ...]], prefix: str = "") -> dict[str, Any]:
    for name, neutral in offered.items():
        if name in fields and fields[name] not in neutral:
            message = f"{prefix}{name} is not offered by this service: leave it out."
            raise bad_request(message, code="unsupported_parameter", param=f"{prefix}{name}")
    return {name: value for name, value in fields.items() if name not in offered}


def _plain_message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if name not in _INERT_IN_MESSAGE}
