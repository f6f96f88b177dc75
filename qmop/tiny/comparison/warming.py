"""Before tuning: whatever a method has to learn from nothing learns to give pooled patches first.

Published schedules last thousands of steps, tuning here lasts hundreds. Without this a method with many parameters of
its own would be judged by how far it is from its start values. Every method with trained parameters gets the same
steps, and the branches of the mixture each as they do alone; nothing but the compressor changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qmop.compressors.base import Compressor
from qmop.compressors.mixture import Mixture
from qmop.compressors.projector import Projector
from qmop.features import Query, VisualFeatures
from qmop.tiny.pretraining.loop import Schedule, train


def learners(compressor: Compressor) -> list[Compressor]:
    """What learns from nothing: the method itself, or those of a mixture's branches that are trained."""
    parts: list[Any] = list(compressor.branches.values()) if isinstance(compressor, Mixture) else [compressor]
    return [part for part in parts if part.declaration.trained and part.declaration.fixed_count]


def warm(
    projector: Projector,
    connector: nn.Module,
    batch: Callable[[int], tuple[VisualFeatures, Query]],
    schedule: Schedule,
    say: Callable[[str], None],
) -> None:
    """Least squares between a method's tokens and average-pooled patches.

    Args:
        projector: whose compressor learns.
        connector: the base's, which a method that ends at the language width is held against.
        batch: features and questions of a step.
        schedule: how long and how fast.
        say: told about progress.
    """
    parts = learners(projector.compressor)
    if not parts or not schedule.steps:
        return
    readout = projector.declaration.readout

    def losses(step: int) -> dict[str, Tensor]:
        features, query = batch(step)
        with torch.no_grad():
            connected = connector(features.patches_BNC) if readout != "connector" else features.patches_BNC
        read = features.with_patches(connected) if readout == "connector_first" else features
        found = {}
        for number, part in enumerate(parts):
            tokens = part(read, query).tokens_BMC
            found[f"pooled {number}"] = F.mse_loss(tokens, pooled(connected, tokens.shape[1]))
        return found

    learning = nn.ModuleList(parts)
    learning.requires_grad_(True)
    train(learning, losses, schedule, say)


def pooled(patches_BNC: Tensor, tokens: int) -> Tensor:
    """A square patch map averaged down to a square of tokens, `(B, M, C)`.

    Raises:
        ValueError: if the tokens are no square.
    """
    grid, side = int(patches_BNC.shape[1] ** 0.5), int(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"tokens is {tokens}, which is no square: pooled patches cannot stand for them")
    maps = patches_BNC.transpose(1, 2).unflatten(2, (grid, grid))
    return F.adaptive_avg_pool2d(maps, side).flatten(2).transpose(1, 2)
