"""Put a published projector (LLaVA-1.5's, TokenPacker's, QueCC's) into a checkpoint that every other job reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from cluster.progress import Progress
from qmop.convert import convert
from qmop.tiny.base import base_path

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class ConvertRecipe:
    """A conversion. Pickled files are read as tensors and nothing else.

    Attributes:
        projector: the published weights: a `.bin` or `.safetensors` file, or the folder of a full checkpoint, whose
            language model is then taken as well.
        base: checkpoint folder that gives towers, connector sizes and language model, or `tiny` for the embedded base.
        output: folder to write; must not exist.
        method: the method that the weights are of; training-free methods take LLaVA-1.5's.
        tokens: the budget that they were trained for; the method's default when absent.
        dtype: of the written weights.
    """

    projector: str
    base: str
    output: str
    method: str = "tokenpacker"
    tokens: int | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


RECIPE = ConvertRecipe


def run(recipe: ConvertRecipe, progress: Progress) -> int:
    """Convert and name the checkpoint."""
    with progress.stage(f"putting {recipe.projector} into {recipe.base}"):
        folder = convert(
            recipe.projector,
            base_path(recipe.base),
            recipe.output,
            method=recipe.method,
            tokens=recipe.tokens,
            dtype=DTYPES[recipe.dtype],
        )
    progress.say(f"checkpoint {folder}")
    return 0
