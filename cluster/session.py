"""A Ray session to work in: a cluster that we are told of, or an embedded one of our own that ends with us.

The embedded cluster keeps to itself. It listens on the loopback interface alone, asks for a token made for it and
kept in this process and its children only, and lives in a temporary folder of its own. It therefore neither sees nor
disturbs other Ray clusters of the same user, nor ``~/.ray/auth_token``. On the way out, whatever the reason, exactly
the processes that were started are ended, by their process ids.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from cluster import processes
from cluster.addresses import check_address, probe, resolved
from cluster.capacity import ClusterBusyError
from cluster.ports import free_port, require_port
from cluster.processes import ended_by_sigterm, set_handler, undisturbed
from cluster.progress import Progress
from cluster.scratch import scratch_folder
from cluster.surroundings import constants, environment, has_token

_LEAST_CPUS = 8
_LEAST_STORE_MB = 80
_PATIENCE_S = 5.0
_ATTEMPTS = 2
_DASHBOARD_PORT, _NOBODY = 8265, 9
_LOOK_S = "0.5"
"""Seconds between two looks of Ray Train at its workers; every report waits for one. A larger cluster has Ray's 2 s."""
_QUIET: dict[str, str | None] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """Which Ray cluster to use, and how large to make one of our own.

    Attributes:
        address: ``host:port`` of a running cluster (its GCS, usually port 6379) or ``auto``; absent: the variable
            RAY_ADDRESS, and where that is absent too, an embedded cluster. ``local`` insists on an embedded one.
        num_cpus: logical CPUs of an embedded cluster; absent: the machine's, but at least 8. Ray only counts with
            them: data readers, trainers and actors each hold some, and too few of them make a pipeline wait for ever.
        num_gpus: GPUs of an embedded cluster; absent: those that Ray finds.
        object_store_mb: shared memory of an embedded cluster for objects in flight, in MiB.
        dashboard: whether an embedded cluster serves Ray's dashboard (on the loopback interface).
        log_to_driver: whether what workers print is repeated on our terminal.
        log_dir: local folder that gets a copy of an embedded cluster's logs when it ends; absent: they go with it.
    """

    address: str | None = None
    num_cpus: int | None = None
    num_gpus: int | None = None
    object_store_mb: int = 256
    dashboard: bool = False
    log_to_driver: bool = False
    log_dir: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ValueError: naming the field, its value and the way out.
        """
        if self.num_cpus is not None and self.num_cpus < 1:
            raise ValueError(f"num_cpus={self.num_cpus} leaves nothing to work with: give at least 1, better 8.")
        if self.num_gpus is not None and self.num_gpus < 0:
            raise ValueError(f"num_gpus={self.num_gpus} is negative: give 0 or more.")
        if self.object_store_mb < _LEAST_STORE_MB:
            raise ValueError(
                f"object_store_mb={self.object_store_mb} is less than Ray accepts: give {_LEAST_STORE_MB} or more."
            )
        if self.address is not None:
            check_address(self.address, "address")


@dataclass(frozen=True, kw_only=True)
class Session:
    """A connected Ray session.

    Attributes:
        address: ``host:port`` of the cluster's GCS.
        owned: whether the cluster is ours and ends with the session.
        dashboard_url: where the dashboard answers, if there is one.
        temp_dir: the embedded cluster's folder (logs are under ``session_latest/logs``); None when connected.
    """

    address: str
    owned: bool
    dashboard_url: str | None = None
    temp_dir: Path | None = None


@contextmanager
def ray_session(settings: RaySettings, progress: Progress) -> Iterator[Session]:
    """Connect to Ray for the length of a ``with`` block.

    A session that is already open in this process is used and left open. Otherwise the order is: ``settings.address``,
    RAY_ADDRESS (set inside ``ray job submit``), an embedded cluster. SIGTERM inside the block becomes ``SystemExit``,
    so that it, like every exception, ends an embedded cluster properly.

    Raises:
        ValueError: if the address is malformed, nobody answers there, or the cluster refuses our token.
        ClusterBusyError: if an embedded cluster does not come up because the machine has no time for it.
    """
    if ray.is_initialized():
        yield Session(address=str(ray.get_runtime_context().gcs_address), owned=False)
        return
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        with _embedded(settings, progress) as session:
            yield session
        return
    check_address(address, "address" if settings.address else "RAY_ADDRESS")
    with _connected(address, settings, progress) as session:
        yield session


@contextmanager
def _embedded(settings: RaySettings, progress: Progress) -> Iterator[Session]:
    dashboard_port = _dashboard_port() if settings.dashboard else _NOBODY
    private = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_AUTH_TOKEN_PATH": None,
        "RAY_ADDRESS": None,
        # Ray's own actors ask the dashboard after each other, and where it is absent they look for it for 40 s.
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard_port}",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": _LOOK_S,
    }
    with environment(_QUIET | private), ended_by_sigterm(), scratch_folder() as folder:
        try:
            session = _start(settings, folder, dashboard_port, progress)
            # Programs that we start, and sessions that they open, find the same cluster.
            os.environ["RAY_ADDRESS"] = session.address
            yield session
        finally:
            with undisturbed(), progress.stage("Stopping the embedded Ray cluster"):
                _end(folder, settings.log_dir)


@contextmanager
def _connected(address: str, settings: RaySettings, progress: Progress) -> Iterator[Session]:
    token: dict[str, str | None] = {}
    if "RAY_AUTH_MODE" not in os.environ and has_token():
        token = {"RAY_AUTH_MODE": "token"}
    with environment(_QUIET | token), ended_by_sigterm():
        with progress.stage(f"Connecting to the Ray cluster at {address}"):
            address = resolved(address)
            probe(address)
            context = _connect(address, settings)
        try:
            yield _describe(context, owned=False, folder=None)
        finally:
            with undisturbed():
                ray.shutdown()


def _start(settings: RaySettings, folder: Path, dashboard_port: int, progress: Progress) -> Session:
    cpus = settings.num_cpus or max(_LEAST_CPUS, os.cpu_count() or 1)
    with progress.stage(f"Starting an embedded Ray cluster with {cpus} logical CPUs"):
        for attempt in range(_ATTEMPTS):
            if attempt:
                progress.say("Ray did not come up within its 30 s on this busy machine: trying again")
            try:
                return _describe(_start_once(settings, cpus, folder, dashboard_port), owned=True, folder=folder)
            except Exception as error:
                # Ray gives a node thirty seconds, without a setting for it, and says so by a bare Exception.
                if "timed out during startup" not in str(error):
                    raise
                processes.end(processes.descendants(str(folder)), patience_s=0.0)
    raise ClusterBusyError(
        f"Ray did not start in {_ATTEMPTS} attempts of 30 s: let other programs on this machine end, and try again."
    )


def _start_once(settings: RaySettings, cpus: int, folder: Path, dashboard_port: int) -> Any:
    # Given a loopback address as an argument, Ray replaces it by the machine's own; this makes it keep to loopback.
    with constants(ENABLE_RAY_CLUSTER=False):
        return _init(
            settings,
            address="local",
            num_cpus=cpus,
            num_gpus=settings.num_gpus,
            object_store_memory=settings.object_store_mb * 1024 * 1024,
            include_dashboard=settings.dashboard,
            dashboard_host="127.0.0.1",
            dashboard_port=dashboard_port,
            _temp_dir=str(folder),
        )


def _dashboard_port() -> int:
    """Ray's usual port, or another where that is in use."""
    try:
        require_port("127.0.0.1", _DASHBOARD_PORT)
    except ValueError:
        return free_port()
    return _DASHBOARD_PORT


def _end(folder: Path, log_dir: str | None) -> None:
    started = processes.descendants(str(folder))
    try:
        ray.shutdown()
    finally:
        processes.end(started, _PATIENCE_S)
        logs = folder / "session_latest" / "logs"
        if log_dir is not None and logs.is_dir():
            shutil.copytree(logs, log_dir, dirs_exist_ok=True)


def _connect(address: str, settings: RaySettings) -> Any:
    try:
        return _init(settings, address=address)
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        ray.shutdown()
        raise ValueError(f"The Ray cluster at {address} cannot be used: {str(error).splitlines()[0]}") from error


def _init(settings: RaySettings, **options: Any) -> Any:
    handler = signal.getsignal(signal.SIGTERM)
    # Under `uv run` Ray would have every worker resolve our dependencies anew.
    with constants(RAY_ENABLE_UV_RUN_RUNTIME_ENV=False):
        context = ray.init(log_to_driver=settings.log_to_driver, logging_level="WARNING", **options)
    set_handler(signal.SIGTERM, handler)  # Ray has put its own in the place
    if "ray.data" in sys.modules:  # it read the environment when it was imported, perhaps before us
        sys.modules["ray.data"].DataContext.get_current().enable_progress_bars = False
    return context


def _describe(context: Any, *, owned: bool, folder: Path | None) -> Session:
    url = context.dashboard_url
    return Session(
        address=context.address_info["gcs_address"],
        owned=owned,
        dashboard_url=f"http://{url}" if url else None,
        temp_dir=folder,
    )
