"""Host a checkpoint behind the OpenAI chat protocol on Ray Serve, on the loopback interface and with a key."""

from __future__ import annotations

from dataclasses import replace

from cluster.ports import require_port
from cluster.progress import Progress
from cluster.session import ray_session
from pipelines.serving.recipe import ServeRecipe
from pipelines.serving.serve import serve_until_stopped
from qmop.tiny.base import base_path

RECIPE = ServeRecipe


def run(recipe: ServeRecipe, progress: Progress) -> int:
    """Serve until interrupted."""
    require_port(recipe.host, recipe.port)
    recipe = replace(recipe, checkpoint=str(base_path(recipe.checkpoint)))
    with ray_session(recipe.ray, progress):
        serve_until_stopped(recipe, progress)
    return 0
