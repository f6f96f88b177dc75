"""Host a checkpoint behind the OpenAI chat protocol on Ray Serve, on the loopback interface and with a key."""

from __future__ import annotations

from dataclasses import replace

from cluster.ports import require_port
from cluster.progress import Progress
from cluster.session import ray_session
from cluster.storage import absolute, exists, is_s3, join
from pipelines.serving.recipe import ServeRecipe
from pipelines.serving.serve import serve_until_stopped
from pipelines.training.exports import CARD, local_copy, read_card
from qmop.tiny.base import TINY, base_path

RECIPE = ServeRecipe


def run(recipe: ServeRecipe, progress: Progress) -> int:
    """Serve until interrupted.

    Raises:
        ValueError: if the port is in use, or the checkpoint is damaged or cannot be served.
        FileNotFoundError: if nothing is at the checkpoint's place.
        StorageError: if it is in S3, which does not answer.
    """
    require_port(recipe.host, recipe.port)
    name = recipe.model_name or (TINY if recipe.checkpoint == TINY else recipe.served_name)
    recipe = replace(recipe, checkpoint=_verified(recipe.checkpoint), model_name=name)
    with ray_session(recipe.ray, progress):
        serve_until_stopped(recipe, progress)
    return 0


def _verified(checkpoint: str) -> str:
    """The checkpoint's place as replicas name it, who work in other directories, once it has been looked at."""
    if is_s3(checkpoint):
        place = absolute(checkpoint)
        if exists(join(place, CARD)) or not exists(join(place, "config.json")):
            read_card(place)  # whether all files are there; who fetches them compares their digests
        return place
    folder = absolute(base_path(checkpoint))
    with local_copy(folder):
        return folder
