"""The same function on many things: on Ray's workers where Ray is initialised, in this process otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2


def spread(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
    """Each result once with its item's number, in the order of completion.

    Raises:
        ValueError: and OSError as the function raised them, without a worker's traceback around them.
    """
    waiting = enumerate(items)
    if not ray.is_initialized():
        for number, item in waiting:
            yield number, function(item)
        return
    shared, worker = ray.put(function), ray.remote(_call)
    slots = _slots()
    numbers: dict[ray.ObjectRef, int] = {}
    while True:
        for number, item in islice(waiting, slots - len(numbers)):
            numbers[worker.remote(shared, item)] = number
        if not numbers:
            return
        done, _ = ray.wait(list(numbers), num_returns=1)
        yield numbers.pop(done[0]), _result(done[0])


def _slots() -> int:
    """How many tasks to have under way: some more than CPUs, but no more processes than cores on a machine alone.

    Ray counts more CPUs than there are cores where it is told so, as embedded clusters are.
    """
    cpus, cores = int(ray.cluster_resources().get("CPU", 1)), os.cpu_count() or 1
    return cores if len(ray.nodes()) == 1 and cpus > cores else max(1, cpus) + _AHEAD


def mapped(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What `map` gives, in its order; raises like `spread`."""
    early: dict[int, Result] = {}
    due = 0
    for number, result in spread(function, items):
        early[number] = result
        while due in early:
            yield early.pop(due)
            due += 1


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _result(reference: ray.ObjectRef) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, ValueError | OSError):
            raise error.cause from error
        raise
