"""Host a checkpoint behind the OpenAI chat protocol on Ray Serve, on the loopback interface and with a key."""

from __future__ import annotations

from dataclasses import replace

from cluster.ports import require_port
from cluster.progress import Progress
from cluster.session import ray_session
from cluster.storage import absolute
from pipelines.serving.recipe import ServeRecipe
from pipelines.serving.serve import serve_until_stopped
from pipelines.training.exports import local_copy
from qmop.tiny.base import TINY, base_path

RECIPE = ServeRecipe


def run(recipe: ServeRecipe, progress: Progress) -> int:
    """Serve until interrupted."""
    require_port(recipe.host, recipe.port)
    name = recipe.model_name or (TINY if recipe.checkpoint == TINY else recipe.served_name)
    folder = absolute(base_path(recipe.checkpoint))  # replicas work in other directories
    with local_copy(folder):  # verifies an export before anything starts
        recipe = replace(recipe, checkpoint=folder, model_name=name)
    with ray_session(recipe.ray, progress):
        serve_until_stopped(recipe, progress)
    return 0
