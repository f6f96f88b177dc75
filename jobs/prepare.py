"""Turn pictures and texts into validated WebDataset shards with a manifest."""

from __future__ import annotations

from cluster.progress import Progress
from cluster.session import ray_session
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe

RECIPE = PrepareRecipe


def run(recipe: PrepareRecipe, progress: Progress) -> int:
    """Prepare the corpus on Ray."""
    with ray_session(recipe.ray, progress):
        manifest = prepare(recipe, progress)
    progress.say(f"corpus {recipe.output}: {manifest.written} samples, digest {manifest.digest[:12]}")
    return 0
