from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from pipelines.serving.app import create_app, key_digest
from pipelines.serving.contract import Prompt, PromptError
from pipelines.serving.conversation import draft_of
from pipelines.serving.counts import Counts
from pipelines.serving.images import Picture
from pipelines.serving.recipe import ServeRecipe
from pipelines.serving.service import ChatService

KEY = "correct-horse-battery"
RECIPE = ServeRecipe(checkpoint="run/best", max_body_bytes=5000, max_image_bytes=2000, max_pixels=5000)
HELLO = {"model": "best", "messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1/chat/completions"


@pytest.fixture
def app(service: ChatService) -> FastAPI:
    return create_app(service, RECIPE, key_digest(KEY))


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with TestClient(app, headers=headers, raise_server_exceptions=False) as client:
        yield client


def with_picture(url: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is this?"}]
    return {"model": "best", "messages": [{"role": "user", "content": parts}]}


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    return error


def chunks_of(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def test_an_answer_with_usage_and_the_compressions_report(client: TestClient, data_url: Callable[..., str]) -> None:
    body = client.post(CHAT, json=with_picture(data_url(Image.new("RGB", (20, 20), "red")))).json()
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "a red circle", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22}
    assert body["qmop"] == {
        "method": "qmop",
        "visual_tokens": 16,
        "visual_tokens_original": 144,
        "branch_weights": {"resampler": 0.25, "window_pool": 0.0, "prune": 0.75},
    }
    assert (body["object"], body["model"]) == ("chat.completion", "best")
    assert body["id"].startswith("chatcmpl-")


def test_without_a_picture_there_are_no_weights(client: TestClient) -> None:
    assert client.post(CHAT, json=HELLO).json()["qmop"]["branch_weights"] is None


def test_a_stream_has_role_first_reason_last_and_usage_on_request(client: TestClient) -> None:
    plain = chunks_of(client.post(CHAT, json={**HELLO, "stream": True}))
    deltas = [chunk["choices"][0]["delta"] for chunk in plain]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "a red"}, {"content": " circle"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in plain] == [None, None, None, "stop"]
    assert ["qmop" in chunk for chunk in plain] == [False, False, False, True]
    assert len({(chunk["id"], chunk["object"]) for chunk in plain}) == 1
    assert not any("usage" in chunk for chunk in plain)
    full = chunks_of(client.post(CHAT, json={**HELLO, "stream": True, "stream_options": {"include_usage": True}}))
    assert full[-1]["choices"] == []
    assert full[-1]["usage"] == {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22}
    assert [chunk["usage"] for chunk in full[:-1]] == [None] * 4


def test_the_engine_gets_what_was_asked(client: TestClient, engine: Any) -> None:
    client.post(CHAT, json={**HELLO, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": "x", "max_tokens": 3})
    sampling = engine.jobs[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.stop) == (0.5, 0.9, 7, ("x",))
    assert sampling.max_new_tokens == 3


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer é"]
)
@pytest.mark.parametrize("path", ["/metrics", "/v1/models", "/v1/models/best", CHAT])
def test_nobody_comes_in_without_the_key(app: FastAPI, engine: Any, header: str | None, path: str) -> None:
    headers = {} if header is None else {"Authorization": header.encode()}
    with TestClient(app) as client:
        response = client.post(path, json=HELLO, headers=headers) if path == CHAT else client.get(path, headers=headers)
    assert error_of(response, 401)["code"] == "invalid_api_key"
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert KEY not in response.text
    assert not engine.jobs


def test_the_key_is_asked_before_the_body_is_read(app: FastAPI) -> None:
    async def scene() -> None:
        sent: list[Any] = []

        async def receive() -> Any:
            raise AssertionError("the body was read")

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope(), receive, send)
        assert sent[0]["status"] == 401

    asyncio.run(scene())


def test_a_body_announced_too_large_is_not_read(service: ChatService) -> None:
    async def scene() -> None:
        sent: list[Any] = []

        async def receive() -> Any:
            raise AssertionError("the body was read")

        async def send(message: Any) -> None:
            sent.append(message)

        await create_app(service, RECIPE, None)(scope(headers=[(b"content-length", b"5001")]), receive, send)
        assert sent[0]["status"] == 413

    asyncio.run(scene())


def test_without_a_key_everybody_comes_in(service: ChatService) -> None:
    with TestClient(create_app(service, RECIPE, None)) as client:
        assert client.post(CHAT, json=HELLO).status_code == 200


def test_models_are_listed_by_name(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert [card["id"] for card in listed["data"]] == ["best"]
    assert client.get("/v1/models/best").json() == listed["data"][0]
    assert error_of(client.get("/v1/models/other"), 404)["code"] == "model_not_found"
    assert error_of(client.post(CHAT, json={**HELLO, "model": "other"}), 404)["param"] == "model"


def test_unknown_paths_and_verbs_are_refused_in_the_same_shape(client: TestClient) -> None:
    assert error_of(client.get("/nowhere"), 404)["code"] == "unknown_url"
    assert error_of(client.get(CHAT), 405)["code"] == "unknown_url"
    assert error_of(client.get("/docs"), 404)
    assert error_of(client.get("/openapi.json"), 404)


def test_a_body_over_the_cap_is_refused_announced_or_not(client: TestClient, service: ChatService) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(6):
            yield b" " * 1000

    assert error_of(client.post(CHAT, content=b" " * 5001), 413)["code"] == "request_too_large"
    assert error_of(client.post(CHAT, content=pieces()), 413)["code"] == "request_too_large"
    # At the cap exactly it is parsed, and found not to be JSON.
    assert error_of(client.post(CHAT, content=b" " * 5000), 400)["code"] == "invalid_json"
    assert service.counts == Counts(received=3, refused=3)


def test_a_body_that_stalls_is_408_and_gives_its_place_back(service: ChatService) -> None:
    async def scene() -> None:
        app = create_app(service, replace(RECIPE, body_timeout_s=0.05), None)
        stalled = [asyncio.create_task(response_of(app, b"{", more_body=True)) for _ in range(service.limit)]
        for sent in await asyncio.gather(*stalled):
            assert sent[0]["status"] == 408
            assert (b"connection", b"close") in sent[0]["headers"]
            assert json.loads(sent[1]["body"])["error"]["code"] == "request_timeout"
        assert service.counts == Counts(received=service.limit, refused=service.limit)
        assert (await response_of(app, json.dumps(HELLO).encode()))[0]["status"] == 200

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_a_picture_by_address_is_refused_with_the_way_out(client: TestClient, engine: Any) -> None:
    error = error_of(client.post(CHAT, json=with_picture("https://example.org/a.png")), 400)
    assert error["code"] == "unsupported_image_url"
    assert error["param"] == "messages.0.content.0.image_url"
    assert not engine.jobs


def test_more_pictures_than_allowed_are_refused(client: TestClient, data_url: Callable[..., str]) -> None:
    body = with_picture(data_url(Image.new("RGB", (20, 20))))
    body["messages"][0]["content"] *= 2
    assert error_of(client.post(CHAT, json=body), 400)["code"] == "too_many_images"


def test_pictures_are_read_off_the_event_loop_and_decoded_one_at_a_time_by_the_engines_thread(
    service: ChatService, engine: Any, data_url: Callable[..., str]
) -> None:
    read, decoded, drafts = [], [], threading.Semaphore(0)
    decode = Picture.decode

    def drafted(*arguments: Any) -> Any:
        read.append(threading.current_thread().name.partition("_")[0])
        draft = draft_of(*arguments)
        drafts.release()
        return draft

    def seen(picture: Picture) -> Image.Image:
        decoded.append(threading.current_thread().name)
        return decode(picture)

    async def scene() -> None:
        app = create_app(service, RECIPE, None)
        body = json.dumps(with_picture(data_url(Image.new("RGB", (20, 20))))).encode()
        asking = [asyncio.create_task(response_of(app, body)) for _ in range(service.limit)]
        for _ in asking:
            assert await asyncio.to_thread(drafts.acquire, timeout=20)
        assert await asyncio.to_thread(engine.progressed.acquire, timeout=20)
        assert decoded == ["engine"]
        engine.gate.release(100)
        assert [sent[0]["status"] for sent in await asyncio.gather(*asking)] == [200] * service.limit

    engine.gate = threading.Semaphore(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.serving.app.draft_of", drafted)
        patch.setattr(Picture, "decode", seen)
        asyncio.run(asyncio.wait_for(scene(), 20))
    assert read == ["intake"] * service.limit
    assert decoded == ["engine"] * service.limit


@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_damaged_behind_its_header_is_a_400(
    client: TestClient, service: ChatService, engine: Any, data_url: Callable[..., str], stream: bool
) -> None:
    whole = base64.b64decode(data_url(Image.effect_noise((40, 40), 80)).partition(",")[2])
    response = client.post(CHAT, json={**with_picture(data_url(whole[: len(whole) // 2])), "stream": stream})
    error = error_of(response, 400)
    assert (error["code"], error["param"]) == ("invalid_image", "messages.0.content.0.image_url")
    assert not engine.jobs
    assert service.counts == Counts(received=1, refused=1)


def test_what_the_model_cannot_take_is_refused_before_it_waits(
    client: TestClient, service: ChatService, engine: Any
) -> None:
    error = error_of(client.post(CHAT, json={**HELLO, "messages": [{"role": "user", "content": "too long"}]}), 400)
    assert (error["code"], error["param"]) == ("invalid_prompt", "messages")
    assert [name.partition("_")[0] for name in engine.checked] == ["intake"]
    assert not engine.batches
    assert service.counts == Counts(received=1, refused=1)


def test_the_counts_are_shown_to_prometheus(client: TestClient) -> None:
    assert client.post(CHAT, json=HELLO).status_code == 200
    assert client.post(CHAT, json={**HELLO, "n": 2}).status_code == 400
    shown = client.get("/metrics")
    assert shown.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = dict(re.findall(r'^qmop_requests_ended_total{end="(\w+)".*} (.*)$', shown.text, re.MULTILINE))
    assert samples == {"answered": "1.0", "refused": "1.0", "cancelled": "0.0", "failed": "0.0"}


def test_a_client_that_leaves_before_its_body_has_come_is_no_failure(service: ChatService) -> None:
    async def scene() -> None:
        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"{", "more_body": True}]

        async def receive() -> Any:
            return messages.pop()

        async def send(message: Any) -> None:
            assert message.get("status", 499) == 499

        await create_app(service, RECIPE, None)(scope(), receive, send)

    asyncio.run(scene())
    assert service.counted() == Counts(received=1, cancelled=1)


def test_a_full_queue_is_429_and_counted(client: TestClient, service: ChatService, engine: Any) -> None:
    engine.gate = threading.Semaphore(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "limit", 0)
        response = client.post(CHAT, json=HELLO)
    assert error_of(response, 429) == {
        "message": "0 requests already wait for this replica: try again in a moment.",
        "type": "rate_limit_error",
        "param": None,
        "code": "queue_full",
    }
    assert response.headers["Retry-After"] == "1"
    assert service.counts == Counts(received=1, refused=1)


def test_health_is_503_until_the_model_has_answered(engine: Any) -> None:
    service = ChatService(engine, max_queued=1)
    with TestClient(create_app(service, RECIPE, key_digest(KEY))) as client:
        assert error_of(client.get("/health"), 503)["type"] == "service_unavailable_error"
        from_engine = client.post(CHAT, json=HELLO, headers={"Authorization": f"Bearer {KEY}"})
        assert error_of(from_engine, 503)
        service.warm_up(Prompt(messages=[], images=[], question="hi"))
        assert client.get("/health").json() == {"status": "ok", "model": "best"}
    service.close()


@pytest.mark.parametrize("stream", [False, True])
def test_what_fails_before_the_first_word_has_its_own_status(client: TestClient, engine: Any, stream: bool) -> None:
    engine.fails_at = 0
    error = error_of(client.post(CHAT, json={**HELLO, "stream": stream}), 500)
    assert (error["type"], error["code"]) == ("server_error", "engine_failed")
    assert "secret" not in error["message"]
    engine.error = PromptError("The conversation is too long: shorten it.")
    assert error_of(client.post(CHAT, json={**HELLO, "stream": stream}), 400)["code"] == "invalid_prompt"


def test_what_fails_amid_a_stream_is_told_in_it(client: TestClient, engine: Any) -> None:
    engine.fails_at = 1
    events = chunks_of(client.post(CHAT, json={**HELLO, "stream": True}))
    assert events[1]["choices"][0]["delta"] == {"content": "a red"}
    assert events[2]["error"]["code"] == "engine_failed"
    assert len(events) == 3


def test_an_empty_answer_is_an_answer(client: TestClient, engine: Any) -> None:
    engine.pieces = []
    assert client.post(CHAT, json=HELLO).json()["choices"][0]["message"]["content"] == ""
    stream = chunks_of(client.post(CHAT, json={**HELLO, "stream": True}))
    assert [chunk["choices"][0]["delta"] for chunk in stream] == [{"role": "assistant", "content": ""}, {}]


def test_an_unforeseen_fault_is_a_500_without_its_inside(client: TestClient, service: ChatService) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.serving.app.sampling_of", lambda *_: 1 / 0)
        response = client.post(CHAT, json=HELLO)
    assert "division" not in response.text
    assert error_of(response, 500)["type"] == "server_error"
    assert service.counts == Counts(received=1, failed=1)


def scope(**changes: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": CHAT,
        "raw_path": CHAT.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        **changes,
    }


async def response_of(app: FastAPI, body: bytes, *, more_body: bool = False) -> list[Any]:
    """What is sent to a client that stays: start and body."""
    messages, sent = [{"type": "http.request", "body": body, "more_body": more_body}], []

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope(), receive, send)
    return sent


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("spec", ["2.3", "2.4"])
def test_a_client_that_leaves_ends_the_generation(service: ChatService, engine: Any, stream: bool, spec: str) -> None:
    async def scene() -> None:
        engine.pieces, engine.gate = ["x"] * 500, threading.Semaphore(2)
        left = asyncio.Event()
        messages = [{"type": "http.request", "body": json.dumps({**HELLO, "stream": stream}).encode()}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(_message: Any) -> None:
            if left.is_set():
                raise OSError

        asgi = {"version": "3.0", "spec_version": spec}
        running = asyncio.create_task(create_app(service, RECIPE, None)(scope(asgi=asgi), receive, send))
        for _ in range(3):
            assert await asyncio.to_thread(engine.progressed.acquire, timeout=20)
        left.set()
        while not engine.ended:  # a token every 10 ms, 500 at most
            engine.gate.release()
            await asyncio.sleep(0.01)
        await asyncio.wait([running], timeout=20)
        assert running.done()

    asyncio.run(scene())
    assert [end.finish_reason for end in engine.ended] == ["cancelled"]
    assert engine.ended[0].completion_tokens < 100
    assert service.counts == Counts(received=1, cancelled=1)


def test_a_task_cancelled_by_the_server_ends_the_generation(service: ChatService, engine: Any) -> None:
    async def scene() -> None:
        engine.pieces, engine.gate = ["x"] * 50, threading.Semaphore(0)
        messages = [{"type": "http.request", "body": json.dumps(HELLO).encode()}]

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(_message: Any) -> None:
            raise AssertionError("nothing should be sent")

        running = asyncio.create_task(create_app(service, RECIPE, None)(scope(), receive, send))
        assert await asyncio.to_thread(engine.progressed.acquire, timeout=20)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        engine.gate.release(100)

    asyncio.run(scene())
    service.close()
    service._worker.join(20)
    assert [end.finish_reason for end in engine.ended] == ["cancelled"]


def test_the_loop_answers_while_the_engine_works(service: ChatService, engine: Any) -> None:
    engine.gate = threading.Semaphore(0)
    recipe = replace(RECIPE, model_name="slow")
    with TestClient(create_app(service, recipe, None)) as client:
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(client.post(CHAT, json={**HELLO, "model": "slow"})))
        asking.start()
        assert engine.progressed.acquire(timeout=20)
        assert client.get("/health").status_code == 200
        assert not answers
        engine.gate.release(100)
        asking.join(20)
    assert answers[0].json()["choices"][0]["message"]["content"] == "a red circle"
