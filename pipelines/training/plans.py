"""What the driver decides once and hands to every training process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.corpus.feed import CorpusFeed
from pipelines.training.recipe import StageName, TrainRecipe


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


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What every process gets.

    Attributes:
        recipe: of the run.
        plans: stages that still have to run, in order.
        board: actor that takes notes for the driver.
    """

    recipe: TrainRecipe
    plans: tuple[StagePlan, ...]
    board: Any
