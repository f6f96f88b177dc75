"""Starting and stopping the service on a Ray session that is already open."""

from __future__ import annotations

import http.client
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus

import ray
from ray import serve
from ray.exceptions import GetTimeoutError, RayActorError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.api import RunTarget
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from cluster import capacity
from cluster.ports import require_port
from cluster.progress import Progress
from cluster.storage import exists, join
from pipelines.serving.deployment import APPLICATION, EngineFactory, build, load_engine
from pipelines.serving.recipe import ServeRecipe, check_key

_POLL_S = 0.2
_WATCH_S = 5.0
# What Ray needs besides the replicas' own time to stop, on a machine that has no time to spare.
_MARGIN_S = 60.0
# No controller (any more), or one that does not answer.
_GONE = (ValueError, RayActorError, GetTimeoutError)
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - asked here, not listened on
_GIVEN_UP = {ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY}


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a service answers.

    Attributes:
        url: base URL for OpenAI clients, ending in /v1.
        api_key: what they must present; None where nothing is asked for.
        model: the model name to ask for.
    """

    url: str
    api_key: str | None = field(repr=False)
    model: str


def deploy(recipe: ServeRecipe, progress: Progress, factory: EngineFactory = load_engine) -> Endpoint:
    """Start the service and return once it has answered its warm-up question and its address answers.

    Args:
        recipe: what to serve and how.
        progress: told of every step.
        factory: makes the engine, in the replicas.

    Raises:
        ValueError: if the port is in use, the key in `key_env` is no good, Serve already runs on this cluster, the
            cluster has no room, or the replicas do not come up.
        FileNotFoundError: if the checkpoint is missing.
        StorageError: if it is in S3, which does not answer.
    """
    require_port(recipe.host, recipe.port)
    if factory is load_engine:
        _require_checkpoint(recipe.checkpoint)
    api_key = (_given_key(recipe) or f"qmop-{secrets.token_urlsafe(32)}") if recipe.require_key else None
    with _quiet(), progress.stage(f"Starting {recipe.served_name} on {recipe.host}:{recipe.port}"):
        _require_no_serve()
        capacity.require(
            what=f"serving with {recipe.replicas} replicas",
            num_cpus=recipe.replicas * recipe.num_cpus,
            num_gpus=recipe.replicas * recipe.num_gpus,
            progress=progress,
        )
        try:
            _start(recipe, api_key, factory, progress)
        except BaseException:
            _stop(recipe)
            raise
    return Endpoint(url=f"http://{_netloc(recipe)}/v1", api_key=api_key, model=recipe.served_name)


def shutdown(recipe: ServeRecipe, progress: Progress) -> None:
    """Stop the service and Serve itself; answers in flight may end first, within `drain_timeout_s`."""
    with _quiet(), progress.stage("Stopping the service"):
        _stop(recipe)


@contextmanager
def serving(recipe: ServeRecipe, progress: Progress, factory: EngineFactory = load_engine) -> Iterator[Endpoint]:
    """The service for the length of a `with` block; arguments and errors as for `deploy`."""
    endpoint = deploy(recipe, progress, factory)
    try:
        yield endpoint
    finally:
        shutdown(recipe, progress)


def serve_until_stopped(recipe: ServeRecipe, progress: Progress) -> None:
    """Serve until Ctrl-C or the end of the session; arguments and errors as for `deploy`.

    Raises:
        RuntimeError: if the service dies meanwhile.
    """
    with serving(recipe, progress) as endpoint:
        progress.say(f"Serving {endpoint.model} at {endpoint.url}; stop with Ctrl-C")
        if endpoint.api_key is not None and _given_key(recipe) is None:
            progress.say(f"API key, shown this once, for {recipe.key_env} is not set: {endpoint.api_key}")
        try:
            _watch(progress)
        except KeyboardInterrupt:
            progress.say(f"Asked to stop: answers in flight get up to {recipe.drain_timeout_s:g} s")


def _given_key(recipe: ServeRecipe) -> str | None:
    if recipe.api_key is not None:
        return recipe.api_key
    if key := os.environ.get(recipe.key_env):
        check_key(recipe.key_env, key)
    return key or None


def _start(recipe: ServeRecipe, api_key: str | None, factory: EngineFactory, progress: Progress) -> None:
    until = time.monotonic() + recipe.start_timeout_s
    serve.start(proxy_location="HeadOnly", http_options={"host": recipe.host, "port": recipe.port})
    target = RunTarget(target=build(recipe, api_key, factory), name=APPLICATION, route_prefix="/")
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    said = ""
    while (state := _application()) is None or state.status != ApplicationStatus.RUNNING:
        if state is not None and state.status in _GIVEN_UP:
            raise ValueError(f"checkpoint={recipe.checkpoint!r} cannot be served: {_reason(state)}")
        if time.monotonic() > until:
            raise ValueError(_too_slow(recipe, state))
        if state is not None and (now := _replicas(state)) != said:
            progress.say(f"Replicas: {now}")
            said = now
        time.sleep(_POLL_S)
    while not _answers(recipe):
        if time.monotonic() > until:
            raise ValueError(f"http://{_netloc(recipe)}/health does not answer: raise start_timeout_s.")
        time.sleep(_POLL_S)


def _stop(recipe: ServeRecipe) -> None:
    try:
        _drain(recipe)
    except BaseException:  # somebody asks twice, and waits neither for answers nor for what Serve still does by itself
        with suppress(*_GONE):
            _ask_to_end()
        raise
    _end_serve(recipe)


def _drain(recipe: ServeRecipe) -> None:
    """Take the application away and wait until its replicas have ended.

    Serve's own shutdown ends its proxies at once, and with them all answers in flight, however long the replicas are
    given. So the replicas go first: they end what they have begun, and the proxies still carry it.
    """
    with suppress(*_GONE):
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        ray.get(controller.delete_apps.remote([APPLICATION]), timeout=_MARGIN_S)
        until = time.monotonic() + recipe.drain_timeout_s + _MARGIN_S
        while _application() is not None and time.monotonic() < until:
            time.sleep(_POLL_S)


def _end_serve(recipe: ServeRecipe) -> None:
    """Shut Serve down and wait for it, until its port is free as well.

    `serve.shutdown` alone waits for a reply that its controller, ending itself, never gives; Ray then prints a false
    alarm on standard output. So ask without waiting for the reply, and see the controller go.
    """
    # Where nothing could be drained, this still has to outlast the replicas' own time.
    until = time.monotonic() + recipe.drain_timeout_s + _MARGIN_S
    with suppress(*_GONE):
        _ask_to_end()
        while time.monotonic() < until:
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
            time.sleep(_POLL_S)
    serve.shutdown()  # forgets the controller that this process knew
    while _listens(recipe) and time.monotonic() < until:  # the proxy outlives its controller by a moment
        time.sleep(_POLL_S)


def _ask_to_end() -> None:
    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    ray.get(controller.graceful_shutdown.remote(wait=False), timeout=_MARGIN_S)


def _watch(progress: Progress) -> None:
    said = ""
    while True:
        state = _application()
        if state is None:
            raise RuntimeError("The service has been stopped from elsewhere.")
        now = f"{state.status.value.lower()}, replicas: {_replicas(state)}"
        if said not in {"", now}:
            progress.say(f"The service is {now}")
        said = now
        time.sleep(_WATCH_S)


def _application() -> ApplicationStatusOverview | None:
    return serve.status().applications.get(APPLICATION)


def _replicas(state: ApplicationStatusOverview) -> str:
    """How many replicas are in which state, such as "1 starting"."""
    counts = [item for deployment in state.deployments.values() for item in deployment.replica_states.items()]
    return ", ".join(f"{count} {getattr(name, 'value', name).lower()}" for name, count in counts) or "none yet"


def _reason(state: ApplicationStatusOverview) -> str:
    """The exception's own line out of the traceback that Serve reports."""
    message = "\n".join([state.message, *(deployment.message for deployment in state.deployments.values())])
    errors = [line.strip() for line in message.splitlines() if "Error: " in line and not line.startswith(" ")]
    return errors[-1] if errors else " ".join(message.split())[:500]


def _too_slow(recipe: ServeRecipe, state: ApplicationStatusOverview | None) -> str:
    waiting = "" if state is None else f" ({_replicas(state)}; {_reason(state)})"
    return (
        f"The service was not ready within start_timeout_s={recipe.start_timeout_s:.0f}{waiting}: free "
        f"{recipe.replicas * recipe.num_cpus:g} logical CPUs and {recipe.replicas * recipe.num_gpus:g} GPUs on the "
        "cluster, or raise start_timeout_s."
    )


def _answers(recipe: ServeRecipe) -> bool:
    host = _EVERYWHERE.get(recipe.host, recipe.host)
    connection = http.client.HTTPConnection(host, recipe.port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _listens(recipe: ServeRecipe) -> bool:
    host = _EVERYWHERE.get(recipe.host, recipe.host)
    try:
        socket.create_connection((host, recipe.port), timeout=5).close()
    except OSError:
        return False
    return True


def _netloc(recipe: ServeRecipe) -> str:
    host = _EVERYWHERE.get(recipe.host, recipe.host)
    return f"[{host}]:{recipe.port}" if ":" in host else f"{host}:{recipe.port}"


def _require_checkpoint(checkpoint: str) -> None:
    if not exists(join(checkpoint, "config.json")):
        raise FileNotFoundError(
            f"checkpoint={checkpoint!r} holds no model: give a folder, here or in S3, with config.json and "
            "model.safetensors."
        )


def _require_no_serve() -> None:
    status = serve.status()
    if status.proxies or status.applications:
        raise ValueError(
            f"Ray Serve already runs on this cluster with {sorted(status.applications) or 'no application'}: stop it "
            "with `serve shutdown`, or leave out the cluster's address to get a cluster of your own."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Serve's own chatter off the terminal; its log files hold it."""
    logger = logging.getLogger("ray.serve")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
