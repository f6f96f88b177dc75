"""Where the numbers of a training go beside its own metrics.jsonl: any number of trackers, none of which can end it."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from types import ModuleType
from typing import Any, Protocol

import ray
from ray.util.metrics import Gauge

from pipelines.training import trackers

Say = Callable[[str], None]
_BACKLOG = 1000
_PATIENCE_S = 60.0


class Tracker(Protocol):
    """Receives what a run is, and its numbers.

    A run that was broken off goes on in the same curves, and counts again the steps after its last saved state. Where
    a tracker can take back what it was told, the later values of a step win (TensorBoard); where it can only append
    (MLflow, W&B), the first ones stay, and what is counted again is left out. No step appears twice.
    """

    def facts(self, facts: Mapping[str, Any]) -> None:
        """What the run is: its recipe, digests and the like, nested as they are."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name; a step below an earlier one means that the run went back to it."""

    def close(self) -> None:
        """Write what is left."""


def tracker_names() -> tuple[str, ...]:
    """What `open_trackers` knows: the files of the folder `trackers`."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(trackers.__path__)))


def require_known(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown.

    Raises:
        ValueError: naming the tracker and those that are known.
    """
    for name in names:
        if name not in tracker_names():
            raise ValueError(f"trackers names {name!r}, which is unknown: choose from {', '.join(tracker_names())}")


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown, or whose package is not installed.

    Raises:
        ValueError: naming the tracker and the way out.
    """
    require_known(names)
    for name in names:
        module = _module(name)
        found = importlib.util.find_spec(module.PACKAGE)
        if found is None or found.origin is None:  # a mere folder of that name, as W&B leaves one, has no origin
            raise ValueError(
                f"trackers names {name}, but the package {module.PACKAGE} is not installed: "
                f"run `pip install {module.INSTALL}`, or take {name} off the trackers"
            )


def open_trackers(names: Sequence[str], output: str, run_name: str, *, say: Say) -> Tracker:
    """All trackers of a run as one, and Ray's own metrics where this process is connected to Ray.

    Each works in a thread of its own: one that fails, hangs or falls behind is named once and left out from then on.

    Args:
        names: of `tracker_names()`.
        output: folder of the run, local or `s3://`; a run that goes on there goes on in the same curves.
        run_name: how people find the run.
        say: takes warnings.

    Raises:
        ValueError: see `check_trackers`.
    """
    check_trackers(names)
    opened = [_Apart(name, partial(_module(name).open_tracker, output, run_name, say), say) for name in names]
    if ray.is_initialized():
        opened.append(_Apart("ray", partial(RayGauges, run_name), say))
    return _All(opened)


class RayGauges:
    """The same numbers as gauges of `ray.util.metrics`, which Prometheus reads from every node of a cluster.

    `train/loss` becomes `ray_qmop_train_loss`, with the tag `run`.
    """

    def __init__(self, run_name: str) -> None:
        self._tags = {"run": run_name}
        self._gauges: dict[str, Gauge] = {}

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Gauges have no place for words."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Set the gauges."""
        for name, value in {"train/global_step": float(step), **values}.items():
            if name not in self._gauges:
                plain = re.sub(r"\W", "_", f"qmop_{name}")
                self._gauges[name] = Gauge(plain, description=f"{name} of a training", tag_keys=("run",))
            self._gauges[name].set(value, tags=self._tags)

    def close(self) -> None:
        """The gauges go with the process."""


class _All:
    """Several trackers as one."""

    def __init__(self, opened: Sequence[Tracker]) -> None:
        self._opened = opened

    def facts(self, facts: Mapping[str, Any]) -> None:
        for tracker in self._opened:
            tracker.facts(facts)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self._opened:
            tracker.scalars(step, values)

    def close(self) -> None:
        for tracker in self._opened:
            tracker.close()


class _Apart:
    """A tracker in a thread of its own, which never raises and never makes anybody wait but its `close`."""

    def __init__(self, name: str, make: Callable[[], Tracker], say: Say) -> None:
        self._name, self._make, self._say = name, make, say
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(_BACKLOG)
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def facts(self, facts: Mapping[str, Any]) -> None:
        self._put(lambda tracker: tracker.facts(facts))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._put(lambda tracker: tracker.scalars(step, values))

    def close(self) -> None:
        self._put(None)
        if not self._given_up.is_set():
            self._thread.join(_PATIENCE_S)
            if self._thread.is_alive():
                self._give_up(f"it did not finish within {_PATIENCE_S:.0f} s")

    def _put(self, call: Callable[[Tracker], None] | None) -> None:
        if self._given_up.is_set():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._give_up(f"it is {_BACKLOG} notes behind")

    def _work(self) -> None:
        try:
            with closing(self._make()) as tracker:
                for call in iter(self._calls.get, None):
                    call(tracker)
        except Exception as error:  # noqa: BLE001 - whatever a foreign library raises must not end a training
            self._give_up(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def _give_up(self, why: str) -> None:
        if not self._given_up.is_set():
            self._given_up.set()
            self._say(f"WARNING: the tracker {self._name} is left out from here on, training goes on: {why}")


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{trackers.__name__}.{name}")
