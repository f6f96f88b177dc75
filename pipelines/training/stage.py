"""One stage in one process: from a state or the beginning to its last step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.corpus.feed import CorpusFeed
from pipelines.corpus.ledger import Ledger, open_ledger
from pipelines.corpus.micro_batches import iter_micro_batches, own_split
from pipelines.training.agreement import from_all, from_rank_zero
from pipelines.training.batches import Batch, Collator, ahead
from pipelines.training.engine import start_engine
from pipelines.training.exports import local_copy
from pipelines.training.memory import settle
from pipelines.training.objective import Objective, freeze, router_of
from pipelines.training.plans import LoopSettings, StagePlan
from pipelines.training.preemption import Notice
from pipelines.training.recipe import compressor_options, ledger_folder
from pipelines.training.resuming import resume
from pipelines.training.saving import Saving
from pipelines.training.schedules import rate_factor
from pipelines.training.states import Found
from qmop.annealing import router_state
from qmop.compressors.elastic import draw_budget
from qmop.loading import derive
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor


@dataclass(kw_only=True)
class Taken:
    """What one step took and gave, in one process or over all."""

    waited_s: float = 0.0
    loss: float = 0.0
    targets: float = 0.0
    tokens: float = 0.0
    look: float = 0.0
    suspects: list[str] = field(default_factory=list)
    """Keys of the samples in this process's slots whose loss is not finite."""
    weights: list[Tensor] = field(default_factory=list)
    """The router's weights of this process's samples, `(B, S)` each."""


class StageRun:
    """One stage in one process."""

    def __init__(self, settings: LoopSettings, plan: StagePlan) -> None:
        self.recipe, self.plan, self.board = settings.recipe, plan, settings.board
        self.stage = self.recipe.stage(plan.name)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.rounds = plan.feed.rounds(self.world)
        self.model, self.processor = self._model()
        self.groups = freeze(self.model, plan.name, self.recipe.lora)
        self.engine = start_engine(Objective(self.model), self.groups, self.stage, self.recipe)
        self.router, self.notice = router_of(self.model), Notice()
        self.collate = Collator(
            self.processor, seed=self.recipe.seed, max_length=self.recipe.max_length, budget=self._budget()
        )

    def _model(self) -> tuple[QMoPForConditionalGeneration, QMoPProcessor]:
        recipe = self.recipe
        torch.manual_seed(recipe.seed)  # every process draws the same fresh parameters
        options = compressor_options(recipe, self.plan.name)
        with local_copy(self.plan.base) as folder:
            model, processor = derive(folder, recipe.compressor, recipe.tokens, options)
        if recipe.gradient_checkpointing:
            model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        return model, processor

    def _budget(self) -> Callable[[int], int] | None:
        """For methods that draw a budget per step: from the first position of a micro-batch to its step's budget."""
        method, recipe = self.model.model.multi_modal_projector.compressor, self.recipe
        if len(method.training_budgets()) == 1:
            return None
        return lambda position: draw_budget(method, recipe.seed, position // recipe.global_batch)

    def run(self, found: Found) -> None:
        """Train from a state, or from the beginning, to the end of the stage, saving and exporting on the way."""
        start = resume(self.engine, found, self.recipe, self.plan.name, self.board)
        if self.rank == 0:
            self.board.post.remote({"kind": "start", "stage": self.plan.name, "step": start})
        batches = ahead(self._batches(self.plan.feed.at(start * self.plan.feed.step)))
        self.ledger = self._open_ledger(start)
        self.saving = Saving(self.recipe, self.plan, self.board)
        settle()
        for step in range(start, self.stage.steps):
            taken = self._step(step, batches)
            last = step + 1 == self.stage.steps
            if step + 1 in self.stage.export_steps():
                self.ledger.flush()
                self.saving.export(self.engine, self.model, self.processor, step + 1)
            due = self.recipe.save_every and (step + 1) % self.recipe.save_every == 0
            leaving = bool(taken.look) and self.notice.look()
            if (due or leaving) and not last:
                self.ledger.flush()
                self.saving.save(self.engine, step + 1, at_once=leaving)
        self.saving.wait()

    def _batches(self, feed: CorpusFeed) -> Iterator[Batch]:
        split = own_split(feed)  # here and now: a collective call has no place in the thread that takes batches
        micros = iter_micro_batches(split, feed, rank=self.rank, world=self.world)
        return (self.collate.void() if micro is None else self.collate(micro) for micro in micros)

    def _open_ledger(self, start: int) -> Ledger:
        """Which attempt at this stage it is; all processes agree."""
        folder = ledger_folder(self.recipe, self.plan.name)
        attempt = from_rank_zero(lambda: open_ledger(folder, self.plan.feed))
        return Ledger(folder=folder, attempt=attempt, start=start, rank=self.rank, world=self.world)

    def _step(self, step: int, batches: Iterator[Batch]) -> Taken:
        """One optimiser step: the loss is summed over answer tokens and divided by their number in the whole step."""
        began, taken = time.monotonic(), Taken()
        self._schedule(step)
        parts = [next(batches) for _ in range(self.rounds)]
        taken.waited_s = time.monotonic() - began
        own = [sum(part.targets for part in parts), sum(part.tokens for part in parts), self.notice.due(self.rank)]
        targets, taken.tokens, taken.look = self._over_processes(own)
        taken.targets = max(1.0, targets)  # all answers may be cut off
        self.engine.train()
        for part in parts:
            self._micro_step(step, part, taken)
        (taken.loss,) = self._over_processes([taken.loss])
        self._require_finite(step, taken)
        self.ledger.note(step, [part for part in parts if part.positions])
        if keys := [key for part in parts for key in part.left_out]:
            note = {"kind": "left_out", "stage": self.plan.name, "step": step + 1, "count": len(keys), "keys": keys}
            self.board.post.remote(note)
        self._report(step, taken, time.monotonic() - began)
        return taken

    def _require_finite(self, step: int, taken: Taken) -> None:
        """End the run with the samples of the slots whose own loss is not finite, of all processes alike.

        Raises:
            FloatingPointError: if the sum over all processes is not finite.
        """
        if math.isfinite(taken.loss):
            return
        keys = [key for of_one in from_all(taken.suspects) for key in of_one]
        way_out = "look at these samples, lower the rate, or set on_nan to skip"
        if not keys:  # blank slots lose as much: the weights are what is wrong
            way_out = "begin again from an older state with a lower rate"
        raise FloatingPointError(
            f"the loss of {self.plan.name} step {step + 1} is {taken.loss}, because of the slots with {keys}: {way_out}"
        )

    def _micro_step(self, step: int, part: Batch, taken: Taken) -> None:
        """Forward and backward of one slot; DeepSpeed steps with the last one."""
        loss, routed = self._forward(step, part)
        if self.recipe.on_nan == "skip":
            part, loss, routed = self._without_bad(step, part, loss, routed)
        # DeepSpeed averages over processes and slots
        self.engine.backward(loss * (self.world * self.rounds / taken.targets))
        self.engine.step()
        own = loss.item()
        if not math.isfinite(own):
            taken.suspects += part.keys
        taken.loss += own / taken.targets
        if routed is not None and not part.dummy:
            taken.weights.append(routed)

    def _forward(self, step: int, part: Batch) -> tuple[Tensor, Tensor | None]:
        self._noise(step, part)
        device = self.engine.device
        inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in part.inputs.items()}
        loss, routed = self.engine(inputs, part.labels.to(device), dummy=part.dummy)
        return loss, routed

    def _without_bad(
        self, step: int, part: Batch, loss: Tensor, routed: Tensor | None
    ) -> tuple[Batch, Tensor, Tensor | None]:
        """The slot again, void where its loss is not finite; all processes together, for ZeRO's collectives' sake."""
        bad = not math.isfinite(loss.item())
        (any_bad,) = self._over_processes([float(bad)])
        if not any_bad:
            return part, loss, routed
        if bad:
            note = {"kind": "skipped", "stage": self.plan.name, "step": step + 1, "keys": list(part.keys)}
            self.board.post.remote(note)
            part = self.collate.void()
        return part, *self._forward(step, part)

    def _over_processes(self, values: list[float]) -> list[float]:
        """The sums of some numbers over all processes."""
        total = torch.tensor(values, dtype=torch.float64, device=self.engine.device)
        dist.all_reduce(total)
        summed: list[float] = total.tolist()
        return summed

    def _schedule(self, step: int) -> None:
        factor = rate_factor(step, self.stage)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def _noise(self, step: int, part: Batch) -> None:
        """Temperature and noise of a step; what is drawn depends on the samples' place alone, not on who computes."""
        if self.router is None or self.plan.name != "tune":
            return
        temperature, noise = router_state(step, self.stage.steps, self.recipe.router)
        place = part.positions[0] if part.positions else 0
        self.router.anneal(temperature, noise, seed=self.recipe.seed * 1_000_003 + place)

    def _report(self, step: int, taken: Taken, seconds: float) -> None:
        if self.rank != 0 or ((step + 1) % self.recipe.log_every and step + 1 != self.stage.steps):
            return
        note: dict[str, Any] = {
            "kind": "step",
            "stage": self.plan.name,
            "step": step + 1,
            "steps": self.stage.steps,
            "at": time.time(),
            "loss": taken.loss,
            "seconds": seconds,
            "world": self.world,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "targets": taken.targets,
            "tokens": taken.tokens,
            "samples_per_s": self.recipe.global_batch / seconds,
            "data_wait": taken.waited_s / seconds,
            "save_wait_s": self.saving.stalled_s,
            "grad_norm": float(self.engine.get_global_grad_norm() or 0.0),
            "rates": {name: g["lr"] for name, g in zip(self.groups, self.engine.optimizer.param_groups, strict=True)},
        }
        if self.router is not None and taken.weights:
            weights_BS = torch.cat(taken.weights)
            note |= {
                "temperature": self.router.temperature,
                "noise": self.router.noise,
                "branch_weights": weights_BS.mean(0).tolist(),
                "router_entropy": float(-(weights_BS * weights_BS.clamp(min=1e-9).log()).sum(1).mean()),
            }
        self.board.post.remote(note)
