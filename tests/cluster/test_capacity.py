from __future__ import annotations

import inspect
import io
import time
from typing import Any

import pytest
import ray
from ray._private.state import state

from cluster.capacity import ClusterBusyError, require
from cluster.progress import Progress

_MB = 1024 * 1024


@pytest.fixture
def resources(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A cluster that exists on paper: what it has, what is free, and what an autoscaler may build."""
    has: dict[str, Any] = {"total": {"CPU": 4.0, "memory": 8e9}, "free": {"CPU": 4.0, "memory": 8e9}, "limit": None}
    monkeypatch.setattr(ray, "cluster_resources", lambda: has["total"])
    monkeypatch.setattr(ray, "available_resources", lambda: has["free"])
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: has["limit"])
    return has


def test_room_is_found_without_a_word(resources: dict[str, Any], progress: Progress, lines: io.StringIO) -> None:
    resources["free"] = {"CPU": 3.99999}
    require(what="training", num_cpus=4, progress=progress)
    require(what="training", num_cpus=0, progress=progress)
    assert lines.getvalue() == ""


@pytest.mark.usefixtures("resources")
def test_what_never_fits_is_refused_at_once(progress: Progress) -> None:
    started = time.monotonic()
    with pytest.raises(
        ValueError, match=r"^training needs 4.5 CPUs \(4 in the whole Ray cluster\): start it with more"
    ):
        require(what="training", num_cpus=4.5, progress=progress)
    with pytest.raises(ValueError, match=r"serving needs 1 GPU \(0 in the whole Ray cluster\): ask for less"):
        require(what="serving", num_cpus=1, num_gpus=1, progress=progress)
    with pytest.raises(ValueError, match=r"needs 10000 MiB of memory \(7629 in"):
        require(what="serving", num_cpus=1, memory_mb=10000, progress=progress)
    assert time.monotonic() - started < 1


def test_a_busy_cluster_is_waited_for_aloud_and_then_given_up(
    resources: dict[str, Any], progress: Progress, lines: io.StringIO
) -> None:
    resources["free"] = {}
    started = time.monotonic()
    with pytest.raises(ClusterBusyError, match=r"training needs 2 CPUs \(0 free\) and found no room in 2 s") as raised:
        require(what="training", num_cpus=2, progress=progress, timeout_s=2)
    assert 1.5 < time.monotonic() - started < 5
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, TimeoutError)
    assert "training waits for room on the Ray cluster: it needs 2 CPUs (0 free)" in lines.getvalue()


def test_the_default_patience_stays_below_half_a_minute() -> None:
    assert inspect.signature(require).parameters["timeout_s"].default < 30


def test_an_autoscaler_sets_the_limit(resources: dict[str, Any], progress: Progress, lines: io.StringIO) -> None:
    resources["limit"] = {"CPU": 16}
    require(what="training", num_cpus=12, progress=progress)
    assert "training needs 12 CPUs (4 so far): the autoscaler has to add nodes" in lines.getvalue()
    with pytest.raises(ValueError, match=r"20 CPUs \(16 in the whole Ray cluster\)"):
        require(what="training", num_cpus=20, progress=progress)
