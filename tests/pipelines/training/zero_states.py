"""The processes of the test of states under ZeRO: `python -m tests.pipelines.training.zero_states FOLDER`.

Two write, then one reads, then three; rank 0 leaves its losses in `FOLDER/<mode>-<world>.json`. The frameworks are
imported once, before all of them part.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from cluster.ports import free_port
from pipelines.training.engine import quiet_start
from pipelines.training.state_files import StateWriter
from pipelines.training.state_loading import load_state
from pipelines.training.states import latest

WAYS = [(zero, precision) for precision in ("fp32", "bf16") for zero in (0, 1, 2, 3)]
BEFORE, AFTER = range(3), range(3, 6)


class Objective(nn.Module):
    """A loss of uneven parameters, one of them frozen, one not used by every step's gradient alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen, self.first, self.second = nn.Linear(7, 13), nn.Linear(13, 11), nn.Linear(11, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(1))
        self.frozen.requires_grad_(requires_grad=False)

    def forward(self, given_BC: torch.Tensor) -> torch.Tensor:
        """The loss of a batch."""
        hidden_BC = torch.tanh(self.first(self.frozen(given_BC)))
        return (self.second(hidden_BC) * self.scale).float().pow(2).mean() + self.second(hidden_BC).float().mean()


def engine(zero: int, precision: str) -> Any:
    """DeepSpeed's engine over the loss."""
    import deepspeed  # noqa: PLC0415 - see quiet_start

    objective = Objective()
    trained = [
        {"params": [*objective.first.parameters(), objective.scale], "lr": 0.05},
        {"params": list(objective.second.parameters()), "lr": 0.02},
    ]
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": zero},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": 10**9,
    }
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98))
    made, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=config)
    return made


def train(ours: Any, steps: range, precision: str) -> list[float]:
    """Every process sees the same batch, so the number of processes changes nothing."""
    dtype, losses = torch.bfloat16 if precision == "bf16" else torch.float32, []
    for step in steps:
        given_BC = torch.randn(16, 7, generator=torch.Generator().manual_seed(step)).to(dtype)
        loss = ours(given_BC)
        ours.backward(loss)
        ours.step()
        losses.append(loss.item())
    return losses


def write(folder: Path) -> dict[str, list[float]]:
    """Losses after the moment of the save, by way."""
    found = {}
    for zero, precision in WAYS:
        ours = engine(zero, precision)
        train(ours, BEFORE, precision)
        name = f"{precision}-{zero}"
        states = StateWriter(
            folder=str(folder / name),
            rank=dist.get_rank(),
            world=dist.get_world_size(),
            token="t",
            keep=1,
            stages=("tune",),
            patience_s=60.0,
            tell=print,
        )
        facts = {"recipe": {}, "corpus_digest": "", "versions": {}, "zero": zero, "position": 0}
        states.save(ours, stage="tune", step=len(BEFORE), **facts)
        found[name] = train(ours, AFTER, precision)
        states.wait()
    return found


def read(folder: Path) -> dict[str, list[float]]:
    """Losses after loading, by way of the writer and way of the reader."""
    found = {}
    for written, precision in WAYS:
        for zero in (0, 1, 2, 3):
            state = latest(str(folder / f"{precision}-{written}"), ("tune",))
            assert state.uri is not None
            assert state.card is not None
            ours = engine(zero, precision)
            load_state(ours, state.uri, state.card)
            found[f"{precision}-{written}>{zero}"] = train(ours, AFTER, precision)
    return found


def take_part(folder: Path, mode: str, rank: int, world: int, port: int) -> None:
    """What one process does."""
    import deepspeed  # noqa: PLC0415 - see quiet_start

    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    losses = {"write": write, "read": read}[mode](folder)
    if rank == 0:
        (folder / f"{mode}-{world}.json").write_text(json.dumps(losses))
    dist.barrier()


def together(folder: Path, mode: str, world: int) -> None:
    """So many processes, to their end; the first that fails ends all.

    Raises:
        SystemExit: with the first code that is not 0.
    """
    port, fork = free_port(), multiprocessing.get_context("fork")
    started = [fork.Process(target=take_part, args=(folder, mode, rank, world, port)) for rank in range(world)]
    for process in started:
        process.start()
    left = list(started)
    while left:
        wait([process.sentinel for process in left])
        left = [process for process in left if process.exitcode is None]
        if failed := [process.exitcode for process in started if process.exitcode]:
            for process in left:
                process.kill()
            raise SystemExit(abs(failed[0]))


if __name__ == "__main__":
    quiet_start()
    import deepspeed  # noqa: F401 - before the processes part

    for task, count in (("write", 2), ("read", 1), ("read", 3)):
        together(Path(sys.argv[1]), task, count)
