"""Everything that changes over a run, as functions of the step alone, so that a resumed run is the same run."""

from __future__ import annotations

import math

from pipelines.training.recipe import RouterSchedule, StageRecipe


def rate_factor(step: int, stage: StageRecipe) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a half cosine to zero."""
    warmup = max(1, round(stage.warmup * stage.steps))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, stage.steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def router_state(step: int, steps: int, schedule: RouterSchedule) -> tuple[float, float]:
    """Temperature and noise scale of the router at a step of the tuning stage."""
    span = max(1.0, schedule.share * steps)
    left = max(0.0, 1.0 - step / span)
    temperature = schedule.temperature_end + left * (schedule.temperature_start - schedule.temperature_end)
    return temperature, left * schedule.noise_start
