"""CLIP: a class token before the patches, and a text tower that ends in a projection."""

from __future__ import annotations

from torch import Tensor, nn

from qmop.encoders.base import States, TowerReader, attention_row, foldable, folded_row


class ClipReader(TowerReader):
    """Reads transformers' `CLIPVisionModel`."""

    class_tokens = 1

    def summary(self, states: States, layer: int) -> Tensor:
        """The class token of the layer."""
        return self.class_token(states, layer)

    def importance(self, states: States, layer: int, *, split_heads: bool) -> Tensor:
        """Rows sum to at most one, since the class token's own share is left out."""
        block, entering = self.entering(states, layer)
        attention = block.self_attn
        heads = attention.num_heads if split_heads else 1
        query = attention.q_proj(entering[:, 0])
        if foldable(attention.k_proj):
            row = folded_row(query, attention.k_proj, entering, heads)
        else:
            row = attention_row(query, attention.k_proj(entering), heads)
        return row[:, self.class_tokens :]

    def text_space(self, states: States, layer: int, *, norm: bool, projection: nn.Module | None) -> Tensor:
        """Patches through the final LayerNorm (unless `norm` is false) and the visual projection."""
        patches = self.patches(states, layer)
        assert projection is not None, "a CLIP text tower has a visual projection, and no other is let through"
        return projection(self.tower.post_layernorm(patches) if norm else patches)
