"""Train a compressor in two stages: first the projector alone, then projector and language model."""

from __future__ import annotations

from cluster.progress import Progress
from pipelines.training.dry_run import print_dry_run
from pipelines.training.recipe import TrainRecipe
from pipelines.training.trainer import train

RECIPE = TrainRecipe


def run(recipe: TrainRecipe, progress: Progress) -> int:
    """Train and name the exported checkpoints, or only say what that would take."""
    if recipe.dry_run:
        print_dry_run(recipe, progress)
        return 0
    result = train(recipe, progress)
    for uri in result.exports:
        progress.say(f"checkpoint {uri}")
    return 0
