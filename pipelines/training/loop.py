"""What every training process runs: the stages of a recipe one after the other."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.corpus.feed import CorpusFeed
from pipelines.corpus.ledger import Ledger, open_ledger
from pipelines.corpus.micro_batches import iter_micro_batches, own_split
from pipelines.training.batches import Batch, Collator, ahead
from pipelines.training.engine import quiet_start, start_engine
from pipelines.training.exports import is_complete, local_copy, publish
from pipelines.training.memory import settle
from pipelines.training.objective import Objective, freeze, router_of
from pipelines.training.recipe import StageName, TrainRecipe, compressor_options, ledger_folder
from pipelines.training.schedules import rate_factor, router_state
from qmop.compressors.elastic import draw_budget
from qmop.loading import derive
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage as the driver planned it: where it starts from and what it reads."""

    name: StageName
    base: str
    feed: CorpusFeed
    exports: tuple[str, ...]
    """Where the exports go, in the order of their steps."""
    corpus_digest: str


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What the driver hands to every process."""

    recipe: TrainRecipe
    plans: tuple[StagePlan, ...]
    board: Any


def train_loop(settings: LoopSettings) -> None:
    """Entry point of a training process under Ray Train."""
    quiet_start()
    import deepspeed  # noqa: PLC0415 - after quiet_start

    torch.set_num_threads(max(1, int(settings.recipe.cpus_per_worker)))
    deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo")
    stage, step, saved = _saved_progress()
    for plan in settings.plans:
        if _already_exported(plan):
            continue
        resuming = plan.name == stage
        StageRun(settings, plan).run(step if resuming else 0, saved if resuming else None)


def _saved_progress() -> tuple[str | None, int, ray.train.Checkpoint | None]:
    """Stage and finished steps of the latest resumable state, after a restart of the processes."""
    saved = ray.train.get_checkpoint()
    if saved is None:
        return None, 0, None
    state = saved.get_metadata()
    return state["stage"], state["step"], saved


def _already_exported(plan: StagePlan) -> bool:
    """Whether a stage was finished before a restart; one process looks, so that all agree."""
    seen = [all(is_complete(uri) for uri in plan.exports) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(seen)
    return bool(seen[0])


class StageRun:
    """One stage in one process."""

    def __init__(self, settings: LoopSettings, plan: StagePlan) -> None:
        self.recipe, self.plan, self.board = settings.recipe, plan, settings.board
        self.stage = self.recipe.stage(plan.name)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.model, self.processor = self._model()
        self.groups = freeze(self.model, plan.name)
        self.engine = start_engine(Objective(self.model), self.groups, self.stage, self.recipe)
        self.router = router_of(self.model)
        self.waited = 0.0

    def _model(self) -> tuple[QMoPForConditionalGeneration, QMoPProcessor]:
        recipe = self.recipe
        torch.manual_seed(recipe.seed)  # every process draws the same fresh parameters
        options = compressor_options(recipe, self.plan.name)
        with local_copy(self.plan.base) as folder:
            return derive(folder, recipe.compressor, recipe.tokens, options)

    def run(self, start: int, saved: ray.train.Checkpoint | None) -> None:
        """Train from a step to the end of the stage, exporting on the way."""
        if saved is not None:
            with saved.as_directory() as folder:
                self.engine.load_checkpoint(folder, tag="state")
        batches = ahead(self._batches(self.plan.feed.at(start * self.plan.feed.step)))
        self.ledger = self._open_ledger(start)
        settle()
        for step in range(start, self.stage.steps):
            self._step(step, batches)
            last = step + 1 == self.stage.steps
            if step + 1 in self.stage.export_steps():
                self._export(step + 1)
            if self.recipe.save_every and not last and (step + 1) % self.recipe.save_every == 0:
                self._save(step + 1)

    def _batches(self, feed: CorpusFeed) -> Iterator[Batch]:
        recipe = self.recipe
        collate = Collator(self.processor, seed=recipe.seed, max_length=recipe.max_length, budget=self._budget())
        split = own_split(feed)  # here and now: a collective call has no place in the thread that takes batches

        def collated() -> Iterator[Batch]:
            for micro in iter_micro_batches(split, feed, rank=self.rank, world=self.world):
                assert micro is not None, "a recipe's slots divide evenly into its workers"
                yield collate(micro)

        return collated()

    def _budget(self) -> Callable[[int], int] | None:
        """For methods that draw a budget per step: from the first position of a micro-batch to its step's budget."""
        method, recipe = self.model.model.multi_modal_projector.compressor, self.recipe
        if len(method.training_budgets()) == 1:
            return None
        return lambda position: draw_budget(method, recipe.seed, position // recipe.global_batch)

    def _step(self, step: int, batches: Iterator[Batch]) -> None:
        """One optimiser step: the loss is summed over answer tokens and divided by their number in the whole step."""
        started = time.monotonic()
        self._schedule(step)
        parts = [next(batches) for _ in range(self.recipe.accumulation)]
        waited = time.monotonic() - started
        targets = max(1.0, self._over_processes(sum(part.targets for part in parts)))  # all answers may be cut off
        scale = self.world * self.recipe.accumulation / targets  # DeepSpeed averages over both
        own, weights = 0.0, None
        self.engine.train()
        for micro, part in enumerate(parts):
            self._noise(step, micro)
            loss, weights = self.engine(self._placed(part.inputs), part.labels.to(self.engine.device), dummy=part.dummy)
            self.engine.backward(loss * scale)
            self.engine.step()
            own += loss.item() / targets
        total = self._over_processes(own)
        if not math.isfinite(total):
            raise FloatingPointError(
                f"the loss of {self.plan.name} step {step + 1} is {total}; samples at positions "
                f"{[position for part in parts for position in part.positions]} of this process were in it"
            )
        self.ledger.note(step, parts)
        self._report(step, total, time.monotonic() - started, waited, weights)

    def _open_ledger(self, start: int) -> Ledger:
        """One process looks which attempt this is, so that all agree."""
        folder = ledger_folder(self.recipe, self.plan.name)
        attempt = [open_ledger(folder, self.plan.feed) if self.rank == 0 else None]
        dist.broadcast_object_list(attempt)
        assert attempt[0] is not None
        return Ledger(folder=folder, attempt=attempt[0], start=start, rank=self.rank, world=self.world)

    def _over_processes(self, value: float) -> float:
        """The sum of a number over all processes."""
        total = torch.tensor(float(value), device=self.engine.device)
        dist.all_reduce(total)
        return total.item()

    def _placed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        device = self.engine.device
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}

    def _schedule(self, step: int) -> None:
        factor = rate_factor(step, self.stage)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def _noise(self, step: int, micro: int) -> None:
        if self.router is None or self.plan.name != "tune":
            return
        temperature, noise = router_state(step, self.stage.steps, self.recipe.router)
        slot = (step * self.recipe.accumulation + micro) * self.world + self.rank
        self.router.anneal(temperature, noise, seed=self.recipe.seed * 1_000_003 + slot)

    def _report(self, step: int, loss: float, seconds: float, waited: float, weights: Tensor | None) -> None:
        if self.rank != 0 or ((step + 1) % self.recipe.log_every and step + 1 != self.stage.steps):
            return
        note: dict[str, Any] = {
            "kind": "step",
            "stage": self.plan.name,
            "step": step + 1,
            "steps": self.stage.steps,
            "loss": loss,
            "samples_per_s": self.recipe.global_batch / seconds,
            "data_wait": waited / seconds,
            "grad_norm": float(self.engine.get_global_grad_norm() or 0.0),
            "rates": {name: g["lr"] for name, g in zip(self.groups, self.engine.optimizer.param_groups, strict=True)},
        }
        if self.router is not None and weights is not None:
            note |= {
                "temperature": self.router.temperature,
                "noise": self.router.noise,
                "branch_weights": weights.mean(0).tolist(),
                "router_entropy": float(-(weights * weights.clamp(min=1e-9).log()).sum(1).mean()),
            }
        self.board.post.remote(note)

    def _export(self, step: int) -> None:
        """Write a checkpoint; under ZeRO-3 every process takes part in gathering it."""
        self.ledger.flush()
        sharded = self.recipe.zero == 3  # noqa: PLR2004 - a ZeRO stage
        state = self.engine._zero3_consolidated_16bit_state_dict() if sharded else self.engine.module.state_dict()  # noqa: SLF001 - DeepSpeed has no public name for it
        if self.rank == 0:
            recipe, uri = self.recipe, self.plan.exports[self.stage.export_steps().index(step)]
            facts = {
                "stage": self.plan.name,
                "step": step,
                "compressor": recipe.compressor,
                "tokens": recipe.tokens,
                "seed": recipe.seed,
                "recipe_digest": recipe.digest,
                "corpus_digest": self.plan.corpus_digest,
            }
            weights = {key.removeprefix("model."): value for key, value in state.items()}
            card = publish(self.model, self.processor, weights, uri, facts)
            self.board.post.remote({"kind": "export", "name": card.name, "digest": card.digest})
        dist.barrier()

    def _save(self, step: int) -> None:
        """Report a resumable state; every process writes its own part."""
        self.ledger.flush()
        with tempfile.TemporaryDirectory() as folder:
            self.engine.save_checkpoint(folder, tag="state")
            dist.barrier()
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            checkpoint.set_metadata({"stage": self.plan.name, "step": step})
            ray.train.report({"step": step}, checkpoint=checkpoint)
