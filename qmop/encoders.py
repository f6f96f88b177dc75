"""Towers to features: what a method declares is computed, and nothing else.

Attention maps are never asked of the tower, whose fast kernels return none: the one row that methods read, the
class token's, is recomputed from the layer's own projections.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModel

from qmop.compressors.base import Declaration
from qmop.features import Query, VisualFeatures


class QueryEncoder(nn.Module):
    """The text tower paired with the vision tower, and the map of patches into its space. Frozen in training."""

    def __init__(self, query_config: CLIPTextConfig, vision_config: CLIPVisionConfig) -> None:
        super().__init__()
        self.text_tower = CLIPTextModelWithProjection(query_config)
        self.visual_projection = nn.Linear(vision_config.hidden_size, query_config.projection_dim, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Query:
        """Questions `(R, T)` to end-token features, one row each."""
        text = self.text_tower.text_model(input_ids=input_ids, attention_mask=attention_mask)
        eos = text.pooler_output
        return Query(text_BE=self.text_tower.text_projection(eos), eos_BC=eos)


def class_attention(tower: CLIPVisionModel, states: tuple[Tensor, ...], layer: int) -> Tensor:
    """Attention mass from the class token to each patch in one layer, mean over heads.

    Args:
        tower: a CLIP vision tower.
        states: its hidden states, embeddings first, each `(B, 1 + N, C)`.
        layer: index of the block, negative from the end; the paper uses the last, -1.

    Returns:
        `(B, N)`; rows sum to at most one, since the class token's own share is left out.
    """
    blocks = tower.encoder.layers
    block = blocks[layer]
    entering = block.layer_norm1(states[layer % len(blocks)])
    attention = block.self_attn
    heads = (attention.num_heads, attention.head_dim)
    query_BHd = attention.q_proj(entering[:, 0]).unflatten(-1, heads)
    key_BNHd = attention.k_proj(entering).unflatten(-1, heads)
    logits_BHN = torch.einsum("bhd,bnhd->bhn", query_BHd, key_BNHd) * attention.scale
    return logits_BHN.float().softmax(dim=-1)[:, :, 1:].mean(dim=1)


def visual_features(
    tower: CLIPVisionModel,
    pixels_BCHW: Tensor,
    declaration: Declaration,
    *,
    layer: int = -2,
    attention_layer: int = -1,
    projection: nn.Module | None = None,
) -> VisualFeatures:
    """Run a CLIP vision tower and gather what a method declares.

    Args:
        tower: transformers' `CLIPVisionModel`.
        pixels_BCHW: normalised pixels.
        declaration: of the method that will read the features.
        layer: hidden state that gives patches and summary; LLaVA-1.5 and the paper use the second to last.
        attention_layer: block whose class attention counts as importance.
        projection: the map into text space, for methods that read it.

    Raises:
        ValueError: if the method reads text space and there is no projection.
    """
    reads = declaration.reads
    states = tower(pixels_BCHW, output_hidden_states=True).hidden_states
    selected = states[layer]
    side = tower.config.image_size // tower.config.patch_size
    features = VisualFeatures(patches_BNC=selected[:, 1:], grid=(side, side))
    if "summary" in reads:
        features.summary_BC = selected[:, 0]
    if "cls_attention" in reads:
        features.cls_attention_BN = class_attention(tower, states, attention_layer)
    if "text_space" in reads:
        if projection is None:
            raise ValueError(
                f"{declaration.name} compares patches with the question, but this model has no text tower: "
                "build it with a query_config (the text tower paired with its vision tower)"
            )
        features.text_space_BNE = projection(tower.post_layernorm(states[-1][:, 1:]))
    return features
