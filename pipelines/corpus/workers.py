"""The same function on many things: on Ray's workers where Ray is initialised, in this process otherwise."""

from __future__ import annotations

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
    slots = max(1, int(ray.cluster_resources().get("CPU", 1))) + _AHEAD
    numbers: dict[ray.ObjectRef, int] = {}
    while True:
        for number, item in islice(waiting, slots - len(numbers)):
            numbers[worker.remote(shared, item)] = number
        if not numbers:
            return
        done, _ = ray.wait(list(numbers), num_returns=1)
        yield numbers.pop(done[0]), _result(done[0])


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
