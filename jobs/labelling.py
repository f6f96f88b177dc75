"""What a judge is asked about a sample, how its answer is checked, and the client that asks until it has one."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from openai import (
    APIConnectionError,
    APIStatusError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    DefaultAsyncHttpxClient,
    NotFoundError,
    PermissionDeniedError,
    UnprocessableEntityError,
)
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.natural.labels import Label
from qmop.vtcbench.natural.samples import Sample
from qmop.vtcbench.shards import picture_kind

_MIME = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
_NAME = "verdict"
_EXPLAINED = {
    "GU": "the overall scene, its main objects and context",
    "SC": "left, right, front, behind and other relations in space; how many",
    "RC": "several steps, causal or common-sense inference grounded in the image",
    "SE": "artistic style, colour, aesthetics, mood",
    "LD": "text, small objects, texture, fine patterns",
}
_RULES = """You sort questions about images into a benchmark that tells which visual ability a question needs.
You see one image, a question about it and the accepted answers. Decide:
- Accept it only if answering needs exactly one of these five abilities:
{dimensions}
- Reject it if it needs none or several of them, if it can be answered without the image, or if question, answer or
  image are ambiguous, irrelevant, wrong or of very low quality.
Answer with one JSON object and nothing else: "decision" is "accept" or "reject"; "dimension" is the code of the one
ability, or null if you reject; "explanation" is one or two sentences."""


class Verdict(BaseModel):
    """A judge's answer; its JSON schema is what the judge is held to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    decision: Literal["accept", "reject"]
    dimension: Literal["GU", "SC", "RC", "SE", "LD"] | None
    explanation: str

    @model_validator(mode="after")
    def _one_or_none(self) -> Verdict:
        if (self.decision == "accept") != (self.dimension is not None):
            raise ValueError("an accepted sample has exactly one dimension, a rejected one has null")
        return self


class NoVerdictError(Exception):
    """The judge gave no usable answer about one sample; `reason` is one of a few words, for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible service.

    Attributes:
        url: its base, such as `https://api.openai.com/v1`.
        model: the model's name there.
        key: secret; `none` where the service asks for none.
        key_env: the variable that the key came from, for what is said when it is refused.
    """

    url: str
    model: str
    key: str
    key_env: str

    def client(self, retries: int, timeout_s: float) -> AsyncOpenAI:
        """A client that repeats what failed for the moment (no connection, 408, 409, 429, 5xx), waiting ever longer."""
        local = urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        http = DefaultAsyncHttpxClient(trust_env=False) if local else None  # a proxy knows nothing of this machine
        return AsyncOpenAI(
            base_url=self.url, api_key=self.key, max_retries=retries, timeout=timeout_s, http_client=http
        )


class Judge:
    """Asks about one sample at a time.

    Args:
        client: to ask through.
        endpoint: what the client talks to.
        attempts: answers that may be unusable before a sample is given up.
        max_tokens: longest answer, in tokens.
    """

    def __init__(self, client: AsyncOpenAI, endpoint: Endpoint, *, attempts: int, max_tokens: int) -> None:
        self._client, self._endpoint = client, endpoint
        self._attempts = attempts
        self._optional: dict[str, Any] = {
            "response_format": response_format(),
            "max_tokens": max_tokens,
            "temperature": 0.0,
        }
        self.refused: list[str] = []
        """Parameters that the service does not take; without a schema, answers are checked all the same."""

    async def verdict(self, sample: Sample) -> Label:
        """The judge's verdict on a sample.

        Raises:
            NoVerdictError: if the sample's picture is unreadable, the service failed or refused it, or no answer of
                several was usable.
            ValueError: if the service refuses everything: address, key or model are wrong.
        """
        messages = _messages(sample)
        problem = ""
        for _ in range(self._attempts):
            said = await self._ask(messages)
            try:
                found = Verdict.model_validate_json(_object(said))
            except ValidationError as error:
                problem = "; ".join(one["msg"] for one in error.errors(include_url=False, include_input=False))
                messages = [*messages, *_again(said, problem)]
                continue
            return Label(
                source=sample.source,
                id=sample.id,
                decision=found.decision,
                dimension=found.dimension,
                explanation=found.explanation,
            )
        raise NoVerdictError("unusable answer", f"{self._attempts} answers were unusable, the last one: {problem}")

    async def _ask(self, messages: list[dict[str, Any]]) -> str:
        try:
            return await self._answer(messages)
        except (AuthenticationError, PermissionDeniedError) as error:
            raise ValueError(
                f"endpoint {self._endpoint.url} refuses the key ({error.status_code}): put the right one into "
                f"{self._endpoint.key_env}"
            ) from error
        except NotFoundError as error:
            raise ValueError(
                f"endpoint {self._endpoint.url} has no model {self._endpoint.model!r} or no chat completions there "
                "(404): correct model or endpoint, which usually ends in /v1"
            ) from error
        except APIStatusError as error:
            raise NoVerdictError(f"status {error.status_code}", error.message) from error
        except APIConnectionError as error:
            raise NoVerdictError("no connection", f"{self._endpoint.url}: {error.message}") from error

    async def _answer(self, messages: list[dict[str, Any]]) -> str:
        sent = dict(self._optional)
        try:
            reply = await self._client.chat.completions.create(
                model=self._endpoint.model,
                messages=messages,  # type: ignore[arg-type]
                **sent,
            )
        except (BadRequestError, UnprocessableEntityError) as error:
            name = next((name for name in sent if _blames(error, name)), None)
            if name is None:
                raise
            self._do_without(name)
            return await self._answer(messages)
        return (reply.choices[0].message.content or "") if reply.choices else ""

    def _do_without(self, name: str) -> None:
        """Leave a parameter out from now on; several requests may find out about it at once."""
        if name not in self._optional:
            return
        value = self._optional.pop(name)
        self.refused.append(name)
        if name == "max_tokens":  # its name with models that think before they answer
            self._optional["max_completion_tokens"] = value


def response_format() -> dict[str, Any]:
    """The schema of a verdict as a request carries it."""
    schema = Verdict.model_json_schema()
    schema.pop("description", None)
    return {"type": "json_schema", "json_schema": {"name": _NAME, "strict": True, "schema": schema}}


def _messages(sample: Sample) -> list[dict[str, Any]]:
    try:
        data = sample.picture()
    except ValueError as error:
        raise NoVerdictError("unreadable picture", str(error)) from error
    url = f"data:{_MIME[picture_kind(data)]};base64,{base64.b64encode(data).decode()}"
    answers = " | ".join(dict.fromkeys(sample.answers))
    dimensions = "\n".join(f"  {code} ({name}): {_EXPLAINED[code]}" for code, name in DIMENSIONS.items())
    return [
        {"role": "system", "content": _RULES.format(dimensions=dimensions)},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": f"Question: {sample.question}\n\nAccepted answers: {answers}"},
            ],
        },
    ]


def _again(said: str, problem: str) -> list[dict[str, Any]]:
    return [
        {"role": "assistant", "content": said or "(nothing)"},
        {"role": "user", "content": f"That is no valid answer: {problem}. Answer with the JSON object alone."},
    ]


def _object(said: str) -> str:
    """The JSON object inside an answer, without the words or fences that some models put around it."""
    first, last = said.find("{"), said.rfind("}")
    return said[first : last + 1] if 0 <= first < last else said


def _blames(error: APIStatusError, name: str) -> bool:
    """Whether a refusal is about a parameter."""
    words = (name, "json_schema") if name == "response_format" else (name,)
    return any(word in f"{error.param} {error.message}" for word in words)
