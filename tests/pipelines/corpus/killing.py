"""Epochs whose training workers are killed: a loop without a model that keeps the books as training does."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.train.collective import barrier, broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from cluster.processes import handlers_kept
from pipelines.corpus.audit import Audit, audit, steps_that_counted
from pipelines.corpus.feed import CorpusFeed
from pipelines.corpus.ledger import Ledger, open_ledger
from pipelines.corpus.micro_batches import iter_micro_batches, own_split

SAVE_EVERY = 3
GlobalBatches = dict[int, list[tuple[int, str]]]


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A kill -9 of one worker: its rank, the step that it has begun, and milliseconds from then on."""

    rank: int
    step: int
    after_ms: float


def draw_kill(draws: random.Random, world: int, steps: range) -> Kill:
    """Any rank, any step of a range, any moment from its beginning on."""
    return Kill(rank=draws.randrange(world), step=draws.choice(steps), after_ms=draws.uniform(0.0, 60.0))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, over several starts on any number of workers.

    Args:
        feed: whole, as the first start has it.
        folder: of this run.
    """

    feed: CorpusFeed
    folder: Path

    @property
    def ledger(self) -> str:
        """Where the account is kept."""
        return str(self.folder / "ledger")

    def start(self, world: int, kill: Kill | None = None) -> bool:
        """Go on with so many workers; whether the run came to its end."""
        trainer = DataParallelTrainer(
            training,
            train_loop_config={"run": self, "kill": kill},
            scaling_config=ray.train.ScalingConfig(num_workers=world, resources_per_worker={"CPU": 0.5}),
            run_config=ray.train.RunConfig(name="killed", storage_path=str(self.folder / "ray")),
        )
        try:
            with handlers_kept():
                trainer.fit()
        except TrainingFailedError:
            if kill is None:
                raise
            return False
        return True

    def global_batches(self) -> GlobalBatches:
        """Positions and keys of every step that counted, in order."""
        steps, *_ = steps_that_counted(self.ledger)
        return {
            step: sorted(row for entry in entries for row in zip(entry.positions, entry.keys, strict=True))
            for step, entries in steps.items()
        }

    def audit(self) -> Audit:
        """The proof of the ledger."""
        return audit(self.ledger)


def training(config: dict[str, Any]) -> None:
    """What a worker does: as the training loop, but nothing is learned."""
    run, kill = config["run"], config["kill"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    saved = ray.train.get_checkpoint()
    start = saved.get_metadata()["step"] if saved else 0
    if start == run.feed.steps():
        return  # killed after its last save
    feed = run.feed.at(start * run.feed.step)
    batches = iter_micro_batches(own_split(feed), feed, rank=rank, world=world)
    attempt = broadcast_from_rank_zero(open_ledger(run.ledger, run.feed) if rank == 0 else None)
    ledger = Ledger(folder=run.ledger, attempt=attempt, start=start, rank=rank, world=world)
    steps = run.feed.steps()
    for step in range(start, steps):
        if kill is not None and (rank, step) == (kill.rank, kill.step):
            threading.Timer(kill.after_ms / 1000, os.kill, (os.getpid(), signal.SIGKILL)).start()
        ledger.note(step, [next(batches) for _ in range(feed.rounds(world))])
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            _save(ledger, step + 1)


def _save(ledger: Ledger, step: int) -> None:
    """Books first, then a checkpoint of all ranks."""
    ledger.flush()
    barrier()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        checkpoint.set_metadata({"step": step})
        ray.train.report({"step": step}, checkpoint=checkpoint)
