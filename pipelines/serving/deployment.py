"""The Serve deployment: a replica loads the checkpoint, answers one question, and only then lets requests in."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from cluster.storage import is_s3
from pipelines.serving.app import create_app, key_digest
from pipelines.serving.contract import ChatEngine, Prompt
from pipelines.serving.recipe import ServeRecipe
from pipelines.serving.service import ChatService

APPLICATION = "qmop"
_SLACK = 32
_DOWNSCALE_S = 60.0


class LoadedEngine(ChatEngine, Protocol):
    """An engine that also knows a question to begin with."""

    def warm_up_prompt(self) -> Prompt:
        """A prompt that takes the way of every other."""
        ...  # pragma: no cover


EngineFactory = Callable[[ServeRecipe], LoadedEngine]


def load_engine(recipe: ServeRecipe) -> LoadedEngine:
    """The engine over the recipe's checkpoint; one in S3 is fetched by each replica, and kept only while it is read.

    Raises:
        FileNotFoundError: if nothing is there.
        StorageError: if it cannot be fetched.
        ValueError: if it is damaged or no model of ours.
    """
    # Here, because torch is for replicas and not for who deploys them.
    from pipelines.serving.engine import QMoPEngine  # noqa: PLC0415
    from pipelines.training.exports import local_copy  # noqa: PLC0415

    if not is_s3(recipe.checkpoint):
        return QMoPEngine.from_checkpoint(recipe.checkpoint, recipe.threads)
    with local_copy(recipe.checkpoint.rstrip("/")) as folder:
        return QMoPEngine.from_checkpoint(str(folder), recipe.threads)


class ChatReplica:
    """One copy of the model with its HTTP application.

    Args:
        recipe: without its API key.
        key_sha256: digest of the API key; None lets everybody in.
        factory: makes the engine.
    """

    def __init__(self, recipe: ServeRecipe, key_sha256: str | None, factory: EngineFactory) -> None:
        os.environ.pop(recipe.key_env, None)  # an embedded cluster's processes have it from who started them
        engine = factory(recipe)
        self._recipe, self._key_sha256 = recipe, key_sha256
        self._service = ChatService(
            engine, max_queued=recipe.max_queued_requests, stall_timeout_s=recipe.stall_timeout_s
        )
        self._service.warm_up(engine.warm_up_prompt(), timeout_s=recipe.start_timeout_s)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application that Serve routes requests to."""
        return create_app(self._service, self._recipe, self._key_sha256)

    def check_health(self) -> None:
        """Let Serve replace a replica whose engine is gone, fails on every request or is stuck.

        Raises:
            RuntimeError: telling which.
        """
        if (ailment := self._service.ailment) is not None:
            raise RuntimeError(ailment)


def build(recipe: ServeRecipe, api_key: str | None, factory: EngineFactory = load_engine) -> Application:
    """The Serve application of a recipe.

    Args:
        recipe: what to serve and how.
        api_key: the key that requests must carry; only its digest leaves this process. None lets everybody in.
        factory: makes the engine, in the replica.
    """
    deployment = serve.deployment(serve.ingress()(ChatReplica)).options(
        name="chat",
        ray_actor_options={"num_cpus": recipe.num_cpus, "num_gpus": recipe.num_gpus},
        # The replica refuses by itself, in OpenAI's words; Serve's own limit lies behind, for floods.
        max_ongoing_requests=recipe.max_queued_requests + _SLACK,
        max_queued_requests=recipe.max_queued_requests + _SLACK,
        backpressure_config={"status_code": 503, "retry_after_s": 2},
        graceful_shutdown_timeout_s=recipe.drain_timeout_s,
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=1,
        **_scaling(recipe),
    )
    digest = None if api_key is None else key_digest(api_key)
    return deployment.bind(replace(recipe, api_key=None), digest, factory)


def _scaling(recipe: ServeRecipe) -> dict[str, Any]:
    if recipe.max_replicas is None or recipe.max_replicas == recipe.replicas:
        return {"num_replicas": recipe.replicas}
    bounds = {"min_replicas": recipe.replicas, "max_replicas": recipe.max_replicas}
    return {"autoscaling_config": {**bounds, "target_ongoing_requests": 2, "downscale_delay_s": _DOWNSCALE_S}}
