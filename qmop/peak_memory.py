"""How much memory a call holds at its peak, the same on every run."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@torch.no_grad()
def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Most memory that a call holds at one time, beyond what was held before it.

    On CUDA it is the allocator's own figure. On the CPU it is the sum of all tensors alive at one time, which repeats
    exactly, where the process's own size would not; scratch memory inside of a kernel is not seen there.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveTensors() as alive:
        call()
    return alive.peak


class _LiveTensors(TorchDispatchMode):
    """Adds up the storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        given = {_storage(value)._cdata for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}  # noqa: SLF001 - its address
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and _storage(value)._cdata not in given:  # noqa: SLF001
                self._count(_storage(value))
        return result

    def _count(self, storage: Any) -> None:
        place = storage._cdata  # noqa: SLF001
        if place in self.sizes:
            return
        self.sizes[place] = storage.nbytes()
        self.live += self.sizes[place]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, place)

    def _freed(self, place: int) -> None:
        self.live -= self.sizes.pop(place)


def _storage(value: Tensor) -> Any:
    return value.untyped_storage()
