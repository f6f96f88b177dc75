"""A training loop that can be stopped at any time and goes on where its last state was written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

_FLOOR = 0.02
_STATE = "state.safetensors"
_MODEL, _OPTIMIZER = "model", "optimizer"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast something learns.

    Attributes:
        steps: in all.
        learning_rate: peak, of Muon for the matrices of the layers and of AdamW for the rest; both are scaled alike.
        warmup: steps of linear rise; a straight descent to a fiftieth takes the rest.
        weight_decay: of every matrix.
    """

    steps: int
    learning_rate: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.05


def rate(step: int, schedule: Schedule) -> float:
    """The share of the peak learning rate at a step."""
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return _FLOOR + (1 - _FLOOR) * (1 - done)


def optimizers(module: nn.Module, schedule: Schedule) -> list[Optimizer]:
    """Muon for the matrices inside layers, AdamW for embeddings, heads, norms and biases."""
    named = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
    inner = [value for name, value in named if value.ndim == 2 and ".layers." in name]  # noqa: PLR2004 - a matrix
    chosen = {id(value) for value in inner}
    outer = [value for _, value in named if id(value) not in chosen]
    peak, decay = schedule.learning_rate, schedule.weight_decay
    found: list[Optimizer] = [AdamW(outer, lr=peak, betas=(0.9, 0.98), weight_decay=decay)]
    if inner:
        found.append(Muon(inner, lr=peak, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return found


def train(
    module: nn.Module,
    losses: Callable[[int], dict[str, Tensor]],
    schedule: Schedule,
    say: Callable[[str], None],
    folder: Path | None = None,
    *,
    every: float = 180.0,
    judge: Callable[[int, float], str] | None = None,
) -> nn.Module:
    """Minimise the sum of some losses.

    Args:
        module: what learns.
        losses: parts of the loss at a step; whatever it draws, it must draw from the step's number alone.
        schedule: how long and how fast.
        say: told about every 25th step.
        folder: where the state is kept; training goes on from one that is found there.
        every: seconds between two states.
        judge: told step and CPU seconds whenever a state is written, says how good the module is.
    """
    running = optimizers(module, schedule)
    first, spent = load_state(folder, module, running)
    module.train()
    started, saved = time.process_time() - spent, time.monotonic()
    for step in range(first, schedule.steps):
        for optimizer in running:
            optimizer.zero_grad(set_to_none=True)
            optimizer.param_groups[0]["lr"] = schedule.learning_rate * rate(step, schedule)
        parts = losses(step)
        sum(parts.values(), torch.zeros(())).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer in running:
            optimizer.step()
        last = step == schedule.steps - 1
        if step % 25 == 0 or last:
            told = " ".join(f"{name} {value.item():.3f}" for name, value in parts.items())
            say(f"{step + 1}/{schedule.steps} {time.process_time() - started:.0f} CPU s {told}")
        if folder is not None and (last or time.monotonic() - saved > every):
            seconds = time.process_time() - started
            save_state(folder, module, running, step + 1, seconds)
            if judge is not None:
                module.eval()
                say(judge(step + 1, seconds))
                module.train()
            saved = time.monotonic()
    return module.eval()


def save_state(folder: Path, module: nn.Module, running: list[Optimizer], step: int, seconds: float) -> None:
    """Write weights and moments so that a half-written file is never taken for a state."""
    tensors = {f"{_MODEL}.{name}": value.detach().clone() for name, value in module.state_dict().items()}
    for number, optimizer in enumerate(running):
        for index, moments in optimizer.state_dict()["state"].items():
            for name, value in moments.items():
                tensors[f"{_OPTIMIZER}.{number}.{index}.{name}"] = torch.as_tensor(value).clone().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{_STATE}"
    save_file(tensors, draft, metadata={"step": str(step), "seconds": str(math.ceil(seconds))})
    draft.replace(folder / _STATE)


def load_state(folder: Path | None, module: nn.Module, running: list[Optimizer]) -> tuple[int, float]:
    """Take over a state, if there is one.

    Returns:
        The next step and the CPU seconds spent so far.
    """
    if folder is None or not (folder / _STATE).is_file():
        return 0, 0.0
    with safe_open(folder / _STATE, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        facts = file.metadata()
    module.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items() if _is(name, _MODEL)})
    for number, optimizer in enumerate(running):
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if _is(name, f"{_OPTIMIZER}.{number}"):
                _, _, index, moment = name.split(".")
                state.setdefault(int(index), {})[moment] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(facts["step"]), float(facts["seconds"])


def _is(name: str, prefix: str) -> bool:
    return name.startswith(f"{prefix}.")
