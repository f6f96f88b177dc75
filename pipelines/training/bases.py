"""The checkpoint that a run starts from: one that is there, or one made of parts, once."""

from __future__ import annotations

import json
from contextlib import ExitStack

from cluster.progress import Progress
from cluster.storage import absolute, is_s3, join, read_bytes
from pipelines.training.assembly import put_together
from pipelines.training.exports import is_complete, publish
from pipelines.training.parts import Parts, digest_of, local_part
from pipelines.training.recipe import TrainRecipe
from pipelines.training.sizes import config_of
from qmop.compressors.base import ASKS
from qmop.configuration_qmop import QMoPConfig
from qmop.loading import declared
from qmop.tiny.base import base_path


def base_of(recipe: TrainRecipe, progress: Progress) -> str:
    """The URI of the checkpoint that a run starts from; made of its parts where the recipe names parts.

    What is made lies beside the run's output under the digest of its parts, and is reused.

    Raises:
        FileNotFoundError: if a part or the checkpoint is missing.
        ValueError: if parts do not fit together.
    """
    if (parts := recipe.parts) is None:
        return recipe.base if is_s3(recipe.base) else absolute(base_path(recipe.base))
    return make_base(parts, recipe.output, progress)


def base_config(recipe: TrainRecipe) -> QMoPConfig:
    """The configuration of a run's base, without its weights.

    Raises:
        FileNotFoundError: if there is none.
    """
    if (parts := recipe.parts) is not None:
        return config_of(parts)
    if is_s3(recipe.base):
        return QMoPConfig.from_dict(json.loads(read_bytes(join(recipe.base, "config.json"))))
    return QMoPConfig.from_pretrained(base_path(recipe.base), local_files_only=True)


def require_eyes_for_words(recipe: TrainRecipe, config: QMoPConfig) -> None:
    """Refuse a method that reads questions over a base that cannot.

    Args:
        recipe: of the run.
        config: of its model, method included.
    """
    if config.query_config is None and (asked := sorted(ASKS & declared(config).reads)):
        raise ValueError(
            f"vision is missing, but {recipe.compressor} reads the question ({', '.join(asked)}): name the CLIP or "
            "SigLIP that the LLaVA's tower was taken from, such as openai/clip-vit-large-patch14-336"
        )


def make_base(parts: Parts, home: str, progress: Progress) -> str:
    """Make a checkpoint of parts under `home`, or find the one that is there; its URI."""
    with ExitStack() as stack:
        with progress.stage(f"looking at {', '.join(f'{field} {name}' for field, name in parts.named.items())}"):
            folders = {field: stack.enter_context(local_part(field, name)) for field, name in parts.named.items()}
            digest = digest_of(folders)
        uri = join(home, f"base-{digest[:12]}")
        if is_complete(uri):
            progress.say(f"reusing the base {uri}")
            return uri
        with progress.stage(f"making the base {uri}"):
            model, processor = put_together(folders)
            facts = {
                "stage": "base",
                "step": 0,
                "compressor": "mlp",
                "tokens": processor.visual_tokens,
                "seed": 0,
                "recipe_digest": digest,
                "corpus_digest": "",
            }
            publish(model, processor, model.state_dict(), uri, facts)
    return uri
