"""An answer in OpenAI's words: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from pipelines.serving import protocol
from pipelines.serving.contract import Completion
from pipelines.serving.errors import ApiError
from pipelines.serving.ticket import Ticket


class Answer:
    """One answer on its way out.

    Args:
        asked: the request.
        ticket: the answer's events.
    """

    def __init__(self, asked: protocol.ChatRequest, ticket: Ticket) -> None:
        # Not the request itself: it holds the pictures' text, which would wait in memory as long as the answer.
        self.streamed, self._with_usage, self._ticket = asked.stream, asked.stream_options.include_usage, ticket
        self._pieces = ticket.pieces()
        self._first = ""
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model,
        }  # fmt: skip

    async def begin(self) -> None:
        """Wait for the first piece of text, or for the end of an empty answer."""
        self._first = await anext(self._pieces, "")

    async def whole(self) -> protocol.ChatCompletion:
        """The answer at once."""
        text = self._first + "".join([piece async for piece in self._pieces])
        end = self._completion()
        message = protocol.AnswerMessage(content=text)
        choice = protocol.Choice(message=message, finish_reason=end.finish_reason)
        return protocol.ChatCompletion(**self._head, choices=[choice], usage=_usage(end), qmop=_visual(end))

    async def events(self) -> AsyncGenerator[str]:
        """The answer as server-sent events, up to `[DONE]`."""
        try:
            async with aclosing(self._chunks()) as chunks:
                async for chunk in chunks:
                    yield f"data: {json.dumps(chunk)}\n\n"
        except ApiError as error:
            yield f"data: {json.dumps(error.body())}\n\n"
        yield "data: [DONE]\n\n"

    async def _chunks(self) -> AsyncGenerator[dict[str, Any]]:
        yield self._chunk(protocol.Delta(role="assistant", content=""))
        if self._first:
            yield self._chunk(protocol.Delta(content=self._first))
        async for piece in self._pieces:
            yield self._chunk(protocol.Delta(content=piece))
        end = self._completion()
        yield self._chunk(protocol.Delta(), finish_reason=end.finish_reason) | {"qmop": _visual(end).model_dump()}
        if self._with_usage:
            yield protocol.ChatChunk(**self._head, choices=[], usage=_usage(end)).model_dump(exclude={"qmop"})

    def _chunk(self, delta: protocol.Delta, finish_reason: str | None = None) -> dict[str, Any]:
        choice = protocol.ChunkChoice(delta=delta, finish_reason=finish_reason)
        chunk = protocol.ChatChunk(**self._head, choices=[choice])
        without = {"qmop"} if self._with_usage else {"qmop", "usage"}
        fields = chunk.model_dump(exclude=without)
        fields["choices"][0]["delta"] = delta.model_dump(exclude_none=True)
        return fields

    def _completion(self) -> Completion:
        assert self._ticket.completion is not None, "pieces end with the completion"
        return self._ticket.completion


class EventStream(StreamingResponse):
    """A stream whose end, however it comes, ends the generation too.

    Args:
        answer: what is sent.
        ticket: cancelled at the end.
        watcher: the task that listens for the client's leaving until this response does so itself.
    """

    def __init__(self, answer: Answer, ticket: Ticket, watcher: asyncio.Task[None]) -> None:
        super().__init__(answer.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._ticket, self._watcher = ticket, watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        # One reader of `receive` at a time: Starlette listens for the disconnect from here on.
        self._watcher.cancel()
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.cancel()


def _usage(end: Completion) -> protocol.Usage:
    total = end.prompt_tokens + end.completion_tokens
    return protocol.Usage(
        prompt_tokens=end.prompt_tokens, completion_tokens=end.completion_tokens, total_tokens=total
    )  # fmt: skip


def _visual(end: Completion) -> protocol.VisualReport:
    seen = end.visual
    return protocol.VisualReport(
        method=seen.method,
        visual_tokens=seen.visual_tokens,
        visual_tokens_original=seen.visual_tokens_original,
        branch_weights=None if seen.branch_weights is None else dict(seen.branch_weights),
    )
