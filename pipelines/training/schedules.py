"""Learning rates as functions of the step alone, so that a resumed run is the same run."""

from __future__ import annotations

import math

from pipelines.training.recipe import StageRecipe


def rate_factor(step: int, stage: StageRecipe) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a half cosine to zero."""
    warmup = max(1, round(stage.warmup * stage.steps))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, stage.steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
