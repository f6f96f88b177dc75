"""Whose fault a failure is: a sample's, which then counts as wrong, or the process's, whose word counts no more.

A process that has lost its device fails at everything that it is asked from then on. What it failed at is put to
another process, and a sample is blamed only where both failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

_IN_A_ROW = 3
"""So many questions that fail alone, one after the other, say more about the process than about the questions."""
_DEVICE = re.compile(r"\b(?:CUDA|HIP|NCCL|cuDNN) error\b|\b(?:CUBLAS|CUDNN|CUSOLVER)_STATUS_", re.IGNORECASE)


class WorkerError(RuntimeError):
    """A process is not fit to answer any more: it is to be ended, and its unit done by another.

    Args:
        why: in one sentence.
        doubted: keys of the items that it failed at; another process asks them alone, and last.
    """

    def __init__(self, why: str, doubted: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.doubted = tuple(doubted)


class Suspicion:
    """What failed in a row in one process at one unit.

    Args:
        doubted: keys of the items that an earlier process failed at; the last of them is the last that is asked.
    """

    def __init__(self, doubted: Sequence[str] = ()) -> None:
        self._doubted = tuple(doubted)
        self._row: list[str] = []
        self.worn = False
        """Whether the process failed at the very last item by losing its device: what it said before stands."""

    def well(self) -> None:
        """Something was answered."""
        self._row.clear()

    def failed(self, error: Exception, keys: Sequence[str]) -> None:
        """A batch, or a question alone, has failed; on return the sample is to blame, or the batch is to be divided.

        Args:
            error: what it failed with.
            keys: of the items that were asked at once.

        Raises:
            WorkerError: if the process is to blame.
        """
        alone = keys[0] if len(keys) == 1 else None
        if lost_device(error):
            if alone is not None and self._doubted and alone == self._doubted[-1]:
                self.worn = True  # two processes lost their device by it, and nothing is left to ask
                return
            blamed = [alone] if alone in self._doubted else [*self._doubted, *keys]
            raise WorkerError(reason_of(error), [key for key in blamed if key is not None]) from error
        if alone is None or alone in self._doubted or not isinstance(error, RuntimeError | MemoryError):
            return
        self._row.append(alone)
        if len(self._row) >= _IN_A_ROW:
            raise WorkerError(
                f"{len(self._row)} questions in a row could not be answered, not even alone ({reason_of(error)})",
                [*self._doubted, *self._row],
            ) from error


def lost_device(error: Exception) -> bool:
    """Whether an error is the device's: in most cases it comes again at everything until the process ends."""
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and _DEVICE.search(str(error)) is not None
    )


@contextmanager
def owning_up() -> Iterator[None]:
    """Turn what a device does at any other moment, such as while a checkpoint is loaded, into a `WorkerError`."""
    try:
        yield
    except WorkerError:
        raise
    except Exception as error:
        if lost_device(error) or isinstance(error, torch.OutOfMemoryError):
            raise WorkerError(reason_of(error)) from error
        raise


def reason_of(error: Exception) -> str:
    """What an error says about itself, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[0] if lost_device(error) else lines[-1]  # behind a device's first line stands advice on debugging
