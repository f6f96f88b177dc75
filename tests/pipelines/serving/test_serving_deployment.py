from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from cluster.storage import put_file, write_atomic
from pipelines.serving import deployment
from pipelines.serving.contract import Completion, Job, Prompt, Sampling, VisualUsage
from pipelines.serving.deployment import ChatReplica, load_engine
from pipelines.serving.recipe import ServeRecipe
from pipelines.training.exports import publish
from qmop.tiny.assemble import tiny_model, tiny_processor
from tests.pipelines.training.test_exports import FACTS

PLACE = "s3://test-bucket/run/best"


def answered(checkpoint: str) -> str:
    engine = load_engine(ServeRecipe(checkpoint=checkpoint))
    pieces: list[str] = []
    ends: list[Completion | Exception] = []
    sampling, here = Sampling(max_new_tokens=8), threading.Event()
    prompt = engine.warm_up_prompt()
    engine.run([Job(prompt=prompt, sampling=sampling, emit=pieces.append, done=ends.append, cancelled=here)])
    assert isinstance(ends[0], Completion), ends
    return "".join(pieces)


@pytest.mark.parametrize("card", [True, False])
def test_a_checkpoint_in_s3_answers_as_the_same_one_here(s3_server: str, tmp_path: Path, card: bool) -> None:
    assert s3_server
    torch.manual_seed(1)
    model, processor = tiny_model("qmop", 16), tiny_processor(16)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    if card:
        publish(model, processor, model.state_dict(), PLACE, FACTS)
    else:
        for path in (path for path in tmp_path.rglob("*") if path.is_file()):
            put_file(path, f"{PLACE}/{path.relative_to(tmp_path)}")
    said = answered(str(tmp_path))
    assert said
    assert answered(f"{PLACE}/") == said


def test_a_damaged_checkpoint_in_s3_is_named(s3_server: str) -> None:
    assert s3_server
    model = tiny_model("qmop", 16)
    publish(model, tiny_processor(16), model.state_dict(), PLACE, FACTS)
    write_atomic(f"{PLACE}/model.safetensors", b"half")
    with pytest.raises(ValueError, match=f"{PLACE} is damaged: model.safetensors"):
        load_engine(ServeRecipe(checkpoint=PLACE))


class Broken:
    """Answers its warm-up question and nothing after it."""

    batch_limit = 1

    def __init__(self) -> None:
        self.asked = 0

    def warm_up_prompt(self) -> Prompt:
        return Prompt(messages=[], images=[], question="hi")

    def check(self, messages: Sequence[Mapping[str, Any]]) -> None:
        del messages

    def run(self, jobs: Sequence[Job]) -> None:
        self.asked += 1
        if self.asked > 1:
            raise RuntimeError("a card has fallen off the bus")
        visual = VisualUsage(method="qmop")
        jobs[0].done(Completion(finish_reason="stop", prompt_tokens=1, completion_tokens=1, visual=visual))


def test_a_replica_whose_model_fails_on_every_request_asks_to_be_replaced() -> None:
    recipe = ServeRecipe(checkpoint="run/best", require_key=False)
    replica = ChatReplica(recipe, None, lambda _: Broken())
    hello = {"model": "best", "messages": [{"role": "user", "content": "hello"}]}
    with TestClient(replica.__serve_build_asgi_app__()) as client:
        for _ in range(3):
            assert client.post("/v1/chat/completions", json=hello).status_code == 500
        replica.check_health()
        assert client.get("/health").status_code == 200
        assert client.post("/v1/chat/completions", json=hello).status_code == 500
        with pytest.raises(RuntimeError, match="failed on 4 requests in a row"):
            replica.check_health()
        assert client.get("/health").status_code == 503


def test_a_replica_forgets_the_key_that_its_surroundings_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "0123456789abcdef")
    seen: list[str | None] = []

    def factory(_recipe: ServeRecipe) -> Broken:
        seen.append(os.environ.get("MY_KEY"))
        return Broken()

    ChatReplica(ServeRecipe(checkpoint="run/best", key_env="MY_KEY"), "digest", factory)
    assert seen == [None]


def test_a_replica_counts_as_stuck_after_the_recipes_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    class Service:
        def __init__(self, _engine: Any, **options: Any) -> None:
            given.append(options)

        def warm_up(self, *_: Any, **__: Any) -> None:
            pass

    monkeypatch.setattr(deployment, "ChatService", Service)
    ChatReplica(ServeRecipe(checkpoint="run/best", stall_timeout_s=42), None, lambda _: Broken())
    assert given == [{"max_queued": 32, "stall_timeout_s": 42}]
