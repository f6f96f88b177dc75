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
