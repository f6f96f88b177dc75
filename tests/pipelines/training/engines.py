"""What DeepSpeed leaves of an engine without ZeRO, and a writer of its states: no processes, no DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from pipelines.training.state_files import StateWriter

FACTS: dict[str, Any] = {"recipe": {}, "corpus_digest": "c", "versions": {}, "zero": 0}


def engine(seed: int = 0) -> Any:
    """A module, one part of which is frozen, and its optimiser."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    module[0].bias.requires_grad_(requires_grad=False)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return SimpleNamespace(module=module, optimizer=torch.optim.AdamW(trained, lr=0.05, betas=(0.9, 0.98)))


def train(ours: Any, steps: range) -> list[float]:
    """The losses of some steps."""
    losses = []
    for step in steps:
        given = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        loss = ours.module(given).pow(2).mean() + ours.module(given).sum()
        ours.optimizer.zero_grad()
        loss.backward()
        ours.optimizer.step()
        losses.append(loss.item())
    return losses


def writer(folder: Path, notes: list[dict[str, Any]], **changes: Any) -> StateWriter:
    """Of the first process of one, which keeps two states."""
    fields: dict[str, Any] = {
        "rank": 0,
        "world": 1,
        "token": "t",
        "keep": 2,
        "stages": ("align", "tune"),
        "patience_s": 20.0,
    }
    return StateWriter(folder=str(folder), tell=notes.append, **(fields | changes))


def save(ours: Any, states: StateWriter, step: int) -> None:
    """Begin to save."""
    states.save(ours, stage="tune", step=step, position=step * 16, **FACTS)
