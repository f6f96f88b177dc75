"""What a family of vision towers can tell about one pass over pictures.

Attention maps are never asked of a tower, whose fast kernels return none: the one row that methods read, the class
token's, is recomputed from the layer's own projections.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

States = tuple[Tensor, ...]
"""Hidden states of a tower, embeddings first, each `(B, class_tokens + N, C)`."""


class TowerReader(ABC):
    """Reads the features that methods declare off a tower's hidden states.

    Args:
        tower: a vision tower of the family.
    """

    class_tokens: ClassVar[int] = 0
    """Tokens that stand before the patches."""

    def __init__(self, tower: Any) -> None:
        self.tower = tower

    def states(self, pixels_BCHW: Tensor) -> States:
        """Run the tower; pictures of another size than its own get interpolated position embeddings."""
        config = self.tower.config
        resized = tuple(pixels_BCHW.shape[-2:]) != (config.image_size, config.image_size)
        extra = {"interpolate_pos_encoding": True} if resized else {}
        return self.tower(pixels_BCHW, output_hidden_states=True, **extra).hidden_states

    def patches(self, states: States, layer: int) -> Tensor:
        """Patch states of a layer, `(B, N, C)`."""
        return states[layer][:, self.class_tokens :]

    def class_token(self, states: States, layer: int) -> Tensor:
        """The class token of a layer, `(B, C)`.

        Raises:
            ValueError: if the family has none.
        """
        if not self.class_tokens:
            family = self.tower.config.model_type
            raise ValueError(f"the method reads a class token, but a {family} has none: choose a method without it")
        return states[layer][:, 0]

    def keys(self, states: States, layer: int) -> Tensor:
        """Keys of the patches in one block, by head, `(B, N, heads, head width)`."""
        block, entering = self.entering(states, layer)
        keys = block.self_attn.k_proj(entering[:, self.class_tokens :])
        return keys.unflatten(-1, (block.self_attn.num_heads, -1))

    def entering(self, states: States, layer: int) -> tuple[Any, Tensor]:
        """A block and what its attention sees."""
        blocks = self.tower.encoder.layers
        block = blocks[layer]
        return block, block.layer_norm1(states[layer % len(blocks)])

    @abstractmethod
    def summary(self, states: States, layer: int) -> Tensor:
        """One vector per image, `(B, C)`."""

    @abstractmethod
    def importance(self, states: States, layer: int, *, split_heads: bool) -> Tensor:
        """Attention mass from the family's summarising token to each patch, `(B, N)`, in single precision."""

    @abstractmethod
    def text_space(self, states: States, layer: int, *, norm: bool, projection: nn.Module | None) -> Tensor:
        """Patches in the space of the paired text tower, `(B, N, E)`, not normalised."""


def attention_row(query_BC: Tensor, key_BNC: Tensor, heads: int) -> Tensor:
    """One row of softmax(q k^T / sqrt(d)), mean over heads, `(B, N)` in single precision.

    Args:
        query_BC: the row's query, projected.
        key_BNC: all keys, projected.
        heads: how many heads share the width.
    """
    query_BHd, key_BNHd = query_BC.unflatten(-1, (heads, -1)), key_BNC.unflatten(-1, (heads, -1))
    logits_BHN = torch.einsum("bhd,bnhd->bhn", query_BHd, key_BNHd) * query_BHd.shape[-1] ** -0.5
    return logits_BHN.float().softmax(dim=-1).mean(dim=1)


def foldable(projection: nn.Module) -> bool:
    """Whether a projection's weights may be read beside its `forward`: not quantised, adapted or partitioned ones."""
    return type(projection) is nn.Linear and not hasattr(projection.weight, "ds_id")


def folded_row(query_BC: Tensor, keys: nn.Module, states_BNC: Tensor, heads: int) -> Tensor:
    """`attention_row` without projecting any key: the key weights go to the one query instead, N times cheaper.

    Args:
        query_BC: the row's query, projected.
        keys: the key projection, see `foldable`.
        states_BNC: what it would project.
        heads: how many heads share the width.
    """
    assert isinstance(keys, nn.Linear)
    query_BHd = query_BC.unflatten(-1, (heads, -1))
    folded_BHC = torch.einsum("bhd,hdc->bhc", query_BHd, keys.weight.unflatten(0, (heads, -1)))
    logits_BHN = torch.einsum("bhc,bnc->bhn", folded_BHC, states_BNC) * query_BHd.shape[-1] ** -0.5
    return logits_BHN.float().softmax(dim=-1).mean(dim=1)  # the keys' bias shifts a row's logits alike
