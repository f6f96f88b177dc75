"""Asking whether the cluster can carry a piece of work before Ray would wait for it without a word."""

from __future__ import annotations

import time

import ray
from ray._private.state import state

from cluster.progress import Progress

_POLL_S = 0.5
_SPEAK_S = 5.0
_MB = 1024 * 1024
# Ray counts in ten-thousandths; sums over nodes carry rounding errors below that.
_SLACK = 1e-4


class ClusterBusyError(TimeoutError, ValueError):
    """The cluster is large enough but stayed occupied; the message is one sentence for the user."""


def require(
    *,
    what: str,
    num_cpus: float,
    progress: Progress,
    num_gpus: float = 0.0,
    memory_mb: float = 0.0,
    timeout_s: float = 25.0,
) -> None:
    """Return once the connected cluster has room for ``what``.

    Sums over all nodes are compared; a single task larger than any one node is not detected. Where an autoscaler may
    add nodes, room that it can still make is not waited for, since only the work itself makes it act.

    Args:
        what: the piece of work, as the subject of a sentence ("training with 2 workers").
        num_cpus: logical CPUs that it holds at once.
        progress: told of every wait.
        num_gpus: GPUs that it holds at once.
        memory_mb: memory that it reserves with Ray, in MiB.
        timeout_s: seconds to wait for room, at most.

    Raises:
        ValueError: at once, if the whole cluster is too small.
        ClusterBusyError: if there is still no room after ``timeout_s``.
    """
    needs = {"CPU": num_cpus, "GPU": num_gpus, "memory": memory_mb * _MB}
    needs = {name: amount for name, amount in needs.items() if amount > 0}
    total = {name: float(amount) for name, amount in ray.cluster_resources().items()}
    limit = _autoscaler_limit()
    if short := _shortage(needs, _largest(total, limit), "in the whole Ray cluster"):
        raise ValueError(f"{what} needs {short}: {_way_out(short)}.")
    if short := _shortage(needs, total, "so far"):
        progress.say(f"{what} needs {short}: the autoscaler has to add nodes")
        return
    _wait(what, needs, progress, timeout_s)


def _wait(what: str, needs: dict[str, float], progress: Progress, timeout_s: float) -> None:
    started = time.monotonic()
    spoken = started - _SPEAK_S
    while short := _shortage(needs, ray.available_resources(), "free"):
        now = time.monotonic()
        if now - started >= timeout_s:
            raise ClusterBusyError(
                f"{what} needs {short} and found no room in {timeout_s:.0f} s: let other work on the Ray cluster end, "
                "stop it (`ray list actors` shows what holds resources), or make the cluster larger."
            )
        if now - spoken >= _SPEAK_S and now - started >= _POLL_S:
            spoken = now
            progress.say(f"{what} waits for room on the Ray cluster: it needs {short}")
        time.sleep(_POLL_S)


def _shortage(needs: dict[str, float], there: dict[str, float], word: str) -> str:
    """What is missing, such as "5 CPUs (4 free)"; empty if nothing is."""
    return " and ".join(
        f"{_amount(name, amount)} ({_number(name, there.get(name, 0.0))} {word})"
        for name, amount in needs.items()
        if there.get(name, 0.0) < amount - _SLACK
    )


def _amount(name: str, amount: float) -> str:
    if name == "memory":
        return f"{_number(name, amount)} MiB of memory"
    return f"{_number(name, amount)} {name}{'' if amount == 1 else 's'}"


def _number(name: str, amount: float) -> str:
    return f"{amount / _MB:.0f}" if name == "memory" else f"{amount:g}"


def _way_out(short: str) -> str:
    if " CPU" in short:
        return "start it with more logical CPUs (num_cpus=... of an embedded cluster, `ray start --num-cpus=...`)"
    return "ask for less, or add a node that has it"


def _largest(total: dict[str, float], limit: dict[str, float] | None) -> dict[str, float]:
    if limit is None:
        return total
    return {name: max(total.get(name, 0.0), limit.get(name, 0.0)) for name in {*total, *limit}}


def _autoscaler_limit() -> dict[str, float] | None:
    """The largest cluster that an autoscaler may build, or None where there is no autoscaler."""
    limit: dict[str, int] | None = state.get_max_resources_from_cluster_config()
    return None if limit is None else {name: float(amount) for name, amount in limit.items()}
