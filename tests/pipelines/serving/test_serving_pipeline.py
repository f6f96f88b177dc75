"""Ray and Serve for real, asked by the stock OpenAI client."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import torch
from PIL import Image

from cluster.ports import free_port
from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from pipelines.serving.recipe import ServeRecipe
from pipelines.serving.serve import Endpoint, deploy, serving, shutdown
from qmop.tiny.assemble import tiny_model, tiny_processor

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="module")
def progress(log: io.StringIO) -> Progress:
    return Progress(log)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    torch.manual_seed(14)  # these weights say one ordinary word for ever, which long streams need
    tiny_model("qmop", 16).save_pretrained(folder)
    tiny_processor(16).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def _ray(progress: Progress) -> Iterator[None]:
    with ray_session(RaySettings(num_cpus=4, object_store_mb=200), progress):
        yield


@pytest.fixture(scope="module")
def recipe(checkpoint: str) -> ServeRecipe:
    return ServeRecipe(checkpoint=checkpoint, port=free_port(), num_cpus=0.5, max_new_tokens=900)


@pytest.fixture(scope="module")
def endpoint(_ray: None, recipe: ServeRecipe, progress: Progress) -> Iterator[Endpoint]:
    with serving(recipe, progress) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=endpoint.url, api_key=endpoint.api_key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def messages(data_url: Callable[..., str]) -> Any:
    url = data_url(Image.radial_gradient("L").convert("RGB"))
    text = {"type": "text", "text": "what is this?"}
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, text]}]


def address(endpoint: Endpoint) -> tuple[str, int]:
    host, _, port = endpoint.url.removeprefix("http://").removesuffix("/v1").partition(":")
    return host, int(port)


# First, while no service of ours runs.
@pytest.mark.usefixtures("_ray")
def test_faults_are_sentences_and_leave_nothing_running(
    checkpoint: str, progress: Progress, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((Path(checkpoint) / "config.json").read_text())
    port = free_port()
    with pytest.raises(ValueError, match="needs 9 CPU"):
        deploy(ServeRecipe(checkpoint=checkpoint, port=port, num_cpus=9), progress)
    with pytest.raises(ValueError, match=r"checkpoint=.*broken' cannot be served: .*Error: ") as caught:
        deploy(ServeRecipe(checkpoint=str(broken), port=port), progress)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert "graceful_shutdown" not in capfd.readouterr().out


def test_the_stock_client_gets_an_answer_with_the_extension(client: openai.OpenAI, messages: Any) -> None:
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=6)
    assert answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens > 16
    report = answer.model_extra["qmop"]
    assert (report["method"], report["visual_tokens"], report["visual_tokens_original"]) == ("qmop", 16, 144)
    assert sum(report["branch_weights"].values()) == pytest.approx(1)


def test_a_stream_says_the_same(client: openai.OpenAI, messages: Any) -> None:
    whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=6)
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=6, stream=True, stream_options=options
    )
    chunks = list(stream)
    told = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in told) == whole.choices[0].message.content
    assert told[0].delta.role == "assistant"
    assert told[-1].finish_reason == whole.choices[0].finish_reason
    assert len(told) > 4
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].model_extra["qmop"] == whole.model_extra["qmop"]


def test_the_models_name_is_listed(client: openai.OpenAI) -> None:
    assert [card.id for card in client.models.list()] == ["tiny"]


def test_refusals_become_the_clients_own_exceptions(endpoint: Endpoint, client: openai.OpenAI, messages: Any) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=messages)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=messages, temperature=9)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=endpoint.url, api_key="wrong", max_retries=0).models.list()


def test_a_body_over_the_cap_is_413(endpoint: Endpoint) -> None:
    connection = http.client.HTTPConnection(*address(endpoint), timeout=30)
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    connection.request("POST", "/v1/chat/completions", b" " * 20_000_001, headers)
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"]["code"] == "request_too_large"
    connection.close()


def test_a_half_read_stream_frees_the_replica(client: openai.OpenAI, messages: Any) -> None:
    # Ten answers of 900 tokens would keep the only engine thread busy for far longer than this test may take.
    for _ in range(10):
        stream = client.chat.completions.create(model="tiny", messages=messages, max_tokens=900, stream=True)
        next(iter(stream))
        stream.close()
    assert client.chat.completions.create(model="tiny", messages=messages, max_tokens=1, timeout=10).choices


def test_many_at_once_are_all_answered(client: openai.OpenAI, messages: Any) -> None:
    answers: list[Any] = []

    def ask() -> None:
        answers.append(client.chat.completions.create(model="tiny", messages=messages, max_tokens=4))

    askers = [threading.Thread(target=ask) for _ in range(16)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(60)
    assert len({answer.choices[0].message.content for answer in answers}) == 1
    assert len(answers) == 16


def test_only_loopback_is_listened_on(endpoint: Endpoint) -> None:
    port = address(endpoint)[1]
    listening = [
        connection.laddr.ip
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    ]
    assert listening == ["127.0.0.1"]


def test_a_second_service_is_refused_in_a_sentence(endpoint: Endpoint, checkpoint: str, progress: Progress) -> None:
    with pytest.raises(ValueError, match="is in use"):
        deploy(ServeRecipe(checkpoint=checkpoint, port=address(endpoint)[1]), progress)
    with pytest.raises(ValueError, match="Ray Serve already runs on this cluster"):
        deploy(ServeRecipe(checkpoint=checkpoint, port=free_port()), progress)
    with pytest.raises(FileNotFoundError, match="holds no model"):
        deploy(ServeRecipe(checkpoint="run/none", port=free_port()), progress)


def test_the_key_is_in_no_log(endpoint: Endpoint, log: io.StringIO) -> None:
    assert "Starting tiny" in log.getvalue()
    assert str(endpoint.api_key) not in log.getvalue()


# Last, for the service is gone afterwards.
def test_a_half_read_stream_is_carried_to_its_end_when_the_service_is_stopped(
    endpoint: Endpoint, client: openai.OpenAI, messages: Any, recipe: ServeRecipe, progress: Progress
) -> None:
    stream = client.chat.completions.create(model="tiny", messages=messages, max_tokens=900, stream=True)
    chunks = iter(stream)
    next(chunks)
    stopping = threading.Thread(target=shutdown, args=(recipe, progress), daemon=True)
    stopping.start()
    told = [chunk.choices[0] for chunk in chunks]
    assert told[-1].finish_reason == "length"
    assert len(told) > 800
    stopping.join(60)
    assert not stopping.is_alive()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address(endpoint), timeout=5)
