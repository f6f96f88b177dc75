"""What Ray Train says of a run that failed, as one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from ray.exceptions import RayActorError, RayTaskError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from cluster.failures import JobFailedError
from pipelines.training.recipe import TrainRecipe, states_folder
from pipelines.training.states import latest

_OWN_FAULTS = (ArithmeticError, ValueError, OSError, MemoryError, torch.OutOfMemoryError)
"""What a process fails of by itself; others then fail of the connection that broke."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_RAISED = re.compile(r"^(?:\w+\.)*(\w+): (\S.*)$", re.MULTILINE)
"""The line of a printed traceback that names exception and message; lines of code are indented."""
_TRACEBACK = "Traceback (most recent call last)"
_LONGEST = 1000


@contextmanager
def explained(recipe: TrainRecipe) -> Iterator[None]:
    """Turn Ray Train's failures into one sentence.

    Raises:
        JobFailedError: naming the process that failed first, why, and where the run would go on.
    """
    try:
        yield
    except TrainingFailedError as error:
        raise JobFailedError(f"training stopped: {_reason(error)}; {_way_on(recipe)}") from error


def _reason(error: TrainingFailedError) -> str:
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        bare = {rank: _bare(failure) for rank, failure in error.worker_failures.items()}
        rank = min(bare, key=lambda rank: (_collateral(bare[rank]), rank))
        return f"the process of rank {rank} failed, {_said(bare[rank])}"
    inner = error.controller_failure if isinstance(error, ControllerError) else error
    return f"Ray Train failed, {_said(inner)}"


def _bare(failure: BaseException) -> BaseException:
    """An exception without Ray's wrapping."""
    return failure._base_exc if isinstance(failure, UserExceptionWithTraceback) else failure  # noqa: SLF001 - Ray has no public name for it


def _collateral(failure: BaseException) -> int:
    """How likely a failure only follows from another process's."""
    if isinstance(failure, _OWN_FAULTS) and not isinstance(failure, ConnectionError):
        return 0
    return 1 if isinstance(failure, RayActorError) else 2


def _said(failure: BaseException) -> str:
    """Type and message; of an exception that carries a printed traceback, those that the traceback ends with."""
    kind, text = type(failure).__name__, _COLOURS.sub("", str(failure))
    if isinstance(failure, RayTaskError) or _TRACEBACK in text:
        last = text.rfind(_TRACEBACK)
        raised = list(_RAISED.finditer(text, max(0, last)))
        # Behind a traceback's own line there may be more of the message; where none is printed, the last one counts.
        kind, text = raised[0 if last >= 0 else -1].groups() if raised else (kind, text.partition("\n")[0])
    text = " ".join(text.split()).rstrip(".")
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST].rstrip()} ..."
    return f"{kind}: {text}" if text else kind


def _way_on(recipe: TrainRecipe) -> str:
    folder = states_folder(recipe)
    try:
        found = latest(folder, recipe.stages)
    except OSError:  # the storage is away, and must not hide why the run failed
        return f"the same command goes on from the latest state in {folder}, if there is one"
    refused = "".join(f"; {why}" for why in found.refused.values())
    if found.uri is not None:
        return f"the same command goes on from {found.uri}{refused}"
    return (
        f"no usable state of it is in {folder}, so the same command begins the stage anew "
        f"(save_every is {recipe.save_every}){refused}"
    )
