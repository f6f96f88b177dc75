"""The HTTP application: who may come in, what is asked, and the answer whole or as a stream. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
import uuid

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pipelines.serving import protocol
from pipelines.serving.answer import Answer, EventStream
from pipelines.serving.conversation import Draft, draft_of, sampling_of
from pipelines.serving.counts import CountsPage
from pipelines.serving.errors import ApiError, too_large, too_slow, unavailable
from pipelines.serving.images import ImageLimits
from pipelines.serving.recipe import ServeRecipe
from pipelines.serving.service import Abandoned, ChatService
from pipelines.serving.ticket import Ticket

_CLIENT_LEFT = 499  # nobody reads it but a proxy's log, where it is the usual number


def key_digest(key: str) -> str:
    """What a replica keeps of the API key."""
    return hashlib.sha256(key.encode()).hexdigest()


def create_app(service: ChatService, recipe: ServeRecipe, key_sha256: str | None) -> FastAPI:
    """The application over a service.

    Args:
        service: the engine and its queue.
        recipe: limits and the model's name; its `api_key` is not read.
        key_sha256: `key_digest` of the key that requests must carry; None lets everybody in.
    """
    app = FastAPI(title="QMoP", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(ApiError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(Abandoned, _let_go)
    app.add_exception_handler(Exception, _fail)
    endpoints = _Endpoints(service, recipe, key_sha256)
    app.add_api_route("/health", endpoints.health, methods=["GET"])
    lock = [Depends(endpoints.authorise)]
    app.add_api_route("/metrics", endpoints.metrics, methods=["GET"], dependencies=lock)
    guarded = APIRouter(prefix="/v1", dependencies=lock)
    guarded.add_api_route("/models", endpoints.models, methods=["GET"])
    guarded.add_api_route("/models/{name}", endpoints.model, methods=["GET"])
    guarded.add_api_route("/chat/completions", endpoints.chat, methods=["POST"], response_model=None)
    app.include_router(guarded)
    return app


class _Endpoints:
    def __init__(self, service: ChatService, recipe: ServeRecipe, key_sha256: str | None) -> None:
        self._service, self._recipe, self._key_sha256 = service, recipe, key_sha256
        self._limits = ImageLimits(max_bytes=recipe.max_image_bytes, max_pixels=recipe.max_pixels)
        self._page = CountsPage(service.counted, uuid.uuid4().hex[:8])
        self._card = protocol.ModelCard(id=recipe.served_name, created=int(time.time()))

    async def authorise(self, request: Request) -> None:
        """Let a request in by its bearer token, before its body is read."""
        if self._key_sha256 is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(key_digest(key.strip()), self._key_sha256):
            return
        message = "The API key is missing or wrong: send the header 'Authorization: Bearer <key>'."
        raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def health(self) -> dict[str, str]:
        """200 once the model has answered its warm-up question, and as long as it is well."""
        if not self._service.ready or self._service.ailment is not None:
            raise unavailable("The model is not ready: try again in a moment.")
        return {"status": "ok", "model": self._card.id}

    async def metrics(self) -> Response:
        """What became of this replica's requests, for Prometheus."""
        return Response(self._page.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def models(self) -> protocol.ModelList:
        """The one model."""
        return protocol.ModelList(data=[self._card])

    async def model(self, name: str) -> protocol.ModelCard:
        """The one model by its name."""
        self._require_name(name)
        return self._card

    async def chat(self, request: Request) -> Response:
        """One answer, whole or as a stream of events."""
        answer, ticket = await self._admit(request)
        watcher = asyncio.create_task(_cancel_when_gone(request, ticket))
        try:
            # Only an answer that has begun may become a stream: what fails before gets its own status.
            await answer.begin()
            if answer.streamed:
                return EventStream(answer, ticket, watcher)
            whole = await answer.whole()
        except BaseException:
            ticket.cancel()
            watcher.cancel()
            raise
        watcher.cancel()
        return JSONResponse(whole.model_dump())

    async def _admit(self, request: Request) -> tuple[Answer, Ticket]:
        with self._service.admission():
            body = await self._body(request)
            asked = await self._service.offload(lambda: protocol.parse_request(body))
            self._require_name(asked.model)
            sampling = sampling_of(asked, self._recipe.max_new_tokens)
            draft = await self._service.offload(lambda: self._draft(asked))
            ticket = self._service.submit(draft.prompt, sampling)
            return Answer(asked, ticket), ticket

    async def _body(self, request: Request) -> bytes:
        """The body, within its bounds: a place is held while it comes, so nobody may take for ever over it."""
        seconds = self._recipe.body_timeout_s
        try:
            async with asyncio.timeout(seconds):
                return await _read_body(request, self._recipe.max_body_bytes)
        except TimeoutError as error:
            message = f"The request's body did not come within {seconds:g} s: send it faster, or a smaller picture."
            raise too_slow(message) from error
        except ClientDisconnect as gone:
            raise Abandoned from gone

    def _draft(self, asked: protocol.ChatRequest) -> Draft:
        draft = draft_of(asked, self._limits, self._recipe.max_images)
        self._service.check(draft.messages)
        return draft

    def _require_name(self, name: str) -> None:
        if name != self._card.id:
            message = f"There is no model {name[:80]!r} here: ask for {self._card.id!r}."
            raise ApiError(404, message, code="model_not_found", param="model")


async def _cancel_when_gone(request: Request, ticket: Ticket) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    ticket.cancel()


async def _read_body(request: Request, cap: int) -> bytes:
    sentence = f"The request is larger than {cap} bytes: send a smaller picture."
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > cap:
        raise too_large(sentence)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > cap:
            raise too_large(sentence)
    return bytes(body)


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError), "registered for this type"
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for this type"
    message = f"{request.method} {request.url.path[:80]} is not offered: {str(error.detail).lower()}."
    refusal = ApiError(error.status_code, message, code="unknown_url", headers=error.headers)
    return JSONResponse(refusal.body(), status_code=error.status_code, headers=refusal.headers)


async def _let_go(_request: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_LEFT)


async def _fail(_request: Request, _error: Exception) -> Response:
    failure = ApiError(500, "The service failed on this request; the reason is in its log.", code="internal_error")
    return JSONResponse(failure.body(), status_code=failure.status)
