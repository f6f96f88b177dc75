"""What a stage leaves behind while it runs: resumable states and exports."""

from __future__ import annotations

import secrets
from typing import Any

import torch.distributed as dist

from pipelines.training.agreement import from_rank_zero
from pipelines.training.exports import library_versions, publish
from pipelines.training.lora import merged
from pipelines.training.plans import StagePlan
from pipelines.training.recipe import TrainRecipe, shaping, states_folder
from pipelines.training.state_files import StateWriter
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor


class Saving:
    """States and exports of one stage in one process; all processes call every method at the same step.

    Attributes:
        stalled_s: seconds that training has stood still for states.
    """

    def __init__(self, recipe: TrainRecipe, plan: StagePlan, board: Any) -> None:
        self.recipe, self.plan, self.board, self.stalled_s = recipe, plan, board, 0.0
        self._states = StateWriter(
            folder=states_folder(recipe),
            rank=dist.get_rank(),
            world=dist.get_world_size(),
            token=from_rank_zero(lambda: secrets.token_hex(4)),
            keep=recipe.keep_states,
            stages=recipe.stages,
            patience_s=recipe.watchdog_s / 2,
            tell=board.post.remote,
        )

    def save(self, engine: Any, step: int, *, at_once: bool) -> None:
        """Begin to write a resumable state beside the training; wait for it where the machine is about to go."""
        self.stalled_s += self._states.save(
            engine,
            stage=self.plan.name,
            step=step,
            position=step * self.plan.feed.step,
            zero=self.recipe.zero,
            recipe=shaping(self.recipe),
            corpus_digest=self.plan.corpus_digest,
            versions=library_versions(),
        )
        if at_once:
            self.wait()

    def wait(self) -> None:
        """Wait for the state that is under way."""
        self._states.wait()

    def export(self, engine: Any, model: QMoPForConditionalGeneration, processor: QMoPProcessor, step: int) -> None:
        """Write a checkpoint; under ZeRO-3 every process takes part in gathering it."""
        sharded = self.recipe.zero == 3  # noqa: PLR2004 - a ZeRO stage
        state = engine._zero3_consolidated_16bit_state_dict() if sharded else engine.module.state_dict()  # noqa: SLF001 - DeepSpeed has no public name for it
        if dist.get_rank() == 0:
            recipe, uri = self.recipe, self.plan.exports[self.recipe.stage(self.plan.name).export_steps().index(step)]
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
            card = publish(model, processor, merged(weights, recipe.lora), uri, facts)
            note = {"kind": "export", "name": card.name, "digest": card.digest, "stage": card.stage, "step": step}
            self.board.post.remote(note)
        dist.barrier()
