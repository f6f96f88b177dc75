"""SigLIP: no class token; a pooling head whose learned probe attends over the patches makes the summary.

Methods were written for CLIP's class token. Where one reads what only that token gives, the pooling head stands in:
its output for the summary, its probe's attention for the class token's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from qmop.encoders.base import States, TowerReader, attention_row


class SiglipReader(TowerReader):
    """Reads transformers' `SiglipVisionModel`."""

    def summary(self, states: States, layer: int) -> Tensor:
        """The pooling head's output, which SigLIP was trained to compare with texts; the layer plays no part."""
        del layer
        return self._head(self._final(states))

    def importance(self, states: States, layer: int, *, split_heads: bool) -> Tensor:
        """Attention of the pooling head's probe over the final patches; rows sum to one. The layer plays no part.

        Blocks have no summarising token whose row could be read, so this stands in for every declared layer.
        """
        del layer
        head, patches_BNC = self._head, self._final(states)
        attention = head.attention
        query_weight, key_weight, _ = attention.in_proj_weight.chunk(3)
        query_bias, key_bias, _ = attention.in_proj_bias.chunk(3)
        query_BC = F.linear(head.probe[:, 0], query_weight, query_bias).expand(len(patches_BNC), -1)
        heads = attention.num_heads if split_heads else 1
        return attention_row(query_BC, F.linear(patches_BNC, key_weight, key_bias), heads)

    def text_space(self, states: States, layer: int, *, norm: bool, projection: nn.Module | None) -> Tensor:
        """Each patch through the pooling head as if it were the only one, that is with all attention on it.

        Texts are compared with the head's output, which has no projection that a patch could pass by itself.
        """
        assert projection is None, "a SigLIP text tower has no visual projection, and no other is let through"
        patches_BNC = self.patches(states, layer)
        alone = (self.tower.post_layernorm(patches_BNC) if norm else patches_BNC).flatten(0, 1).unsqueeze(1)
        return self._head(alone).unflatten(0, patches_BNC.shape[:2])

    @property
    def _head(self) -> Any:
        """The pooling head.

        Raises:
            ValueError: if the tower was built without it.
        """
        if not self.tower.use_head:
            raise ValueError(
                "the method reads what the pooling head makes of the patches, but this SigLIP tower has none "
                "(vision_use_head is false): take a tower with its head, or a method that reads patches alone"
            )
        return self.tower.head

    def _final(self, states: States) -> Tensor:
        return self.tower.post_layernorm(states[-1])
