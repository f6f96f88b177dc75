"""What the driver decides once and hands to every training process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cluster.storage import join
from pipelines.corpus.feed import CorpusFeed
from pipelines.training.exports import FOLDER, export_name, is_complete
from pipelines.training.recipe import StageName, TrainRecipe
from pipelines.training.signing import has_key


def export_uris(recipe: TrainRecipe, stage: StageName) -> dict[int, str]:
    """Where the exports of a stage go, by their steps."""
    return {
        step: join(recipe.output, FOLDER, export_name(recipe.compressor, recipe.tokens, stage, step))
        for step in recipe.stage(stage).export_steps()
    }


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage as the driver planned it.

    Attributes:
        name: of the stage.
        base: checkpoint that it starts from.
        feed: what it reads.
        exports: where the exports go, in the order of their steps.
        corpus_digest: of the corpus.
    """

    name: StageName
    base: str
    feed: CorpusFeed
    exports: tuple[str, ...]
    corpus_digest: str

    def finished(self) -> bool:
        """Whether every export is there."""
        return all(is_complete(uri) for uri in self.exports)


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What every process gets.

    Attributes:
        recipe: of the run.
        plans: stages that still have to run, in order.
        board: actor that takes notes for the driver.
        signed: whether the driver has a key for states; a process that lacks it then refuses to start.
    """

    recipe: TrainRecipe
    plans: tuple[StagePlan, ...]
    board: Any
    signed: bool = field(default_factory=has_key)


def stage_plans(recipe: TrainRecipe, corpus_digest: str, base: str) -> tuple[StagePlan, ...]:
    """The stages that still have to run; each starts from the last export of the one before."""
    plans = []
    for number, stage in enumerate(recipe.stages):
        feed = CorpusFeed(
            corpora=recipe.corpus,
            seed=recipe.seed * len(recipe.stages) + number,
            micro_batch=recipe.micro_batch,
            slots=recipe.slots,
            samples=recipe.stage(stage).steps * recipe.global_batch,
        )
        uris = tuple(export_uris(recipe, stage).values())
        plans.append(StagePlan(name=stage, base=base, feed=feed, exports=uris, corpus_digest=corpus_digest))
        base = uris[-1]
    return tuple(plan for plan in plans if not plan.finished())
