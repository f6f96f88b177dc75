"""What one training process finds out and all of them must know alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch.distributed as dist

T = TypeVar("T")


def from_rank_zero(make: Callable[[], T]) -> T:
    """What the process of rank 0 makes, in every process; a collective call."""
    made: list[T | None] = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(made)
    return cast("T", made[0])


def from_all(mine: T) -> list[T]:
    """What each process has, in the order of ranks, in every process; a collective call where there are several."""
    if not dist.is_initialized():
        return [mine]
    all_of_them: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(all_of_them, mine)
    return cast("list[T]", all_of_them)
