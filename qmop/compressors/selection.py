"""What methods that select patches share: the best by score, their order, and the gather of their states."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from qmop.compressors.base import Compressor, in_range
from qmop.features import Query


def best(score: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest along the last dimension, largest first; ties go to the lower index."""
    return score.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def rank(score_BN: Tensor) -> Tensor:
    """The place of each score in its row, 0 for the largest, `(B, N)`; ties go to the lower index."""
    return best(score_BN, score_BN.shape[1]).argsort(dim=1)


def raster(index_BM: Tensor) -> Tensor:
    """Patch indices in the order of the image."""
    return index_BM.sort(dim=1).values


def take(states_BNC: Tensor, index_BM: Tensor) -> Tensor:
    """The states at some indices, `(B, M, C)`."""
    return states_BNC.gather(1, index_BM.unsqueeze(-1).expand(-1, -1, states_BNC.shape[-1]))


def full_precision(states: Tensor) -> AbstractContextManager[None]:
    """A context in which autocast leaves scores in single precision; half of it would choose other patches."""
    kind = states.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def asked_budget(method: Compressor, tokens: int | None) -> int:
    """The budget of a call to a method that takes any from 1 to N.

    Raises:
        ValueError: if there are fewer patches, or none is asked for.
    """
    return method.tokens if tokens is None else in_range(tokens, method.grid)


def need_query(query: Query | None, name: str) -> Query:
    """The question of a text-guided method.

    Raises:
        ValueError: if there is none.
    """
    if query is None:
        raise ValueError(f"query is missing, but {name} selects patches by the question: pass query= to the processor")
    return query
