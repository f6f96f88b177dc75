"""Towers to features: what a method declares is computed, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qmop.compressors.base import Declaration
from qmop.encoders.base import States, TowerReader
from qmop.encoders.clip import ClipReader
from qmop.encoders.query import QueryEncoder
from qmop.encoders.siglip import SiglipReader
from qmop.features import VisualFeatures

__all__ = ["QueryEncoder", "TowerReader", "default_levels", "reader_of", "visual_features"]

READERS: dict[str, type[TowerReader]] = {"clip_vision_model": ClipReader, "siglip_vision_model": SiglipReader}


def reader_of(tower: Any) -> TowerReader:
    """The reader for a tower's family.

    Raises:
        ValueError: if the family is not known.
    """
    family = tower.config.model_type
    if family not in READERS:
        raise ValueError(f"the vision tower is a {family}, but only {', '.join(sorted(READERS))} can be read")
    return READERS[family](tower)


def default_levels(layers: int) -> tuple[int, ...]:
    """TokenPacker's four levels at any depth: half, two thirds, and the last two that LLaVA-1.5 could use.

    12, 16, 22 and 23 of the 24 layers of CLIP ViT-L (arXiv 2407.02392, Sec. 3.2).
    """
    return layers // 2, 2 * layers // 3, layers - 2, layers - 1


def visual_features(
    tower: Any,
    pixels_BCHW: Tensor,
    declaration: Declaration,
    *,
    layer: int = -2,
    attention_layer: int | None = None,
    levels: list[int] | None = None,
    query_encoder: QueryEncoder | None = None,
) -> VisualFeatures:
    """Run a vision tower and gather what a method declares.

    Args:
        tower: transformers' `CLIPVisionModel` or `SiglipVisionModel`.
        pixels_BCHW: normalised pixels.
        declaration: of the method that will read the features.
        layer: hidden state that gives patches and, with a class token, the summary; LLaVA-1.5 and the paper use
            the second to last.
        attention_layer: block whose class attention and keys are read; the declared one when absent.
        levels: hidden states that stand side by side for methods that read several; see `default_levels`.
        query_encoder: the paired text tower, whose map into text space some methods read.

    Raises:
        ValueError: if the tower lacks what the method reads, or the text tower is not of its family.
    """
    reader = reader_of(tower)
    states = reader.states(pixels_BCHW)
    patch = tower.config.patch_size
    features = VisualFeatures(
        patches_BNC=reader.patches(states, layer),
        grid=(pixels_BCHW.shape[-2] // patch, pixels_BCHW.shape[-1] // patch),
    )
    _pool(reader, states, declaration, features, layer)
    block = declaration.attention_layer if attention_layer is None else attention_layer
    if "cls_attention" in declaration.reads:
        features.cls_attention_BN = reader.importance(states, block, split_heads=declaration.split_heads)
    if "keys" in declaration.reads:
        features.keys_BNHd = reader.keys(states, block)
    if "levels" in declaration.reads:
        chosen = levels or default_levels(len(states) - 1)
        features.levels_BNF = torch.cat([reader.patches(states, level) for level in chosen], dim=-1)
    if "text_space" in declaration.reads:
        if query_encoder is None:
            raise ValueError(
                f"{declaration.name} compares patches with the question, but this model has no text tower: "
                "build it with a query_config (the text tower paired with its vision tower)"
            )
        query_encoder.require_pair(tower.config.model_type)
        features.text_space_BNE = reader.text_space(
            states, declaration.text_layer, norm=declaration.text_norm, projection=query_encoder.visual_projection
        )
    return features


def _pool(reader: TowerReader, states: States, declaration: Declaration, features: VisualFeatures, layer: int) -> None:
    """Fill in the vectors that stand for a whole image."""
    if "class_token" in declaration.reads:
        features.class_token_BC = reader.class_token(states, layer)
    if "summary" in declaration.reads:
        features.summary_BC = reader.summary(states, layer)
