"""QMoP's pooling branch: attention inside local windows, queried by a learned grid (Sec. 3.3)."""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization as init

from qmop.compressors.attention import KeyValue, Norm, ValueInit
from qmop.compressors.base import Compressor, Declaration, budget, stride_of
from qmop.compressors.registry import register
from qmop.features import CompressedTokens, Query, VisualFeatures


@register
class WindowPool(Compressor):
    """A learned query map of h x w x C; query (i, j) attends to the s x s patches under it and to no others.

    Args:
        width: C.
        grid: side of the patch grid.
        tokens: M = (grid / s)^2.
        heads: attention heads (open in the paper).
        norm: where LayerNorm stands (open in the paper).
        value_init: start of the value path, see `KeyValue`.
    """

    declaration = Declaration(name="window_pool", source="QMoP, arXiv 2603.21232, Sec. 3.3", trained=True)

    def __init__(
        self,
        *,
        width: int,
        grid: int,
        tokens: int,
        heads: int = 8,
        norm: Norm = "qkv",
        value_init: ValueInit = "normal",
    ) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        self.stride = stride_of(grid, tokens)
        self.query_MC = nn.Parameter(torch.empty(tokens, width))
        self.attention = KeyValue(width, heads, norm, value_init)
        self.initialise()

    def initialise(self) -> None:
        """Small random queries, then the projections."""
        init.trunc_normal_(self.query_MC, std=0.02)
        self.attention.initialise()

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """One token per window in raster order, `(B, M, C)`."""
        del query
        count = budget(self.tokens, tokens, "window_pool")
        side, stride, parts = self.grid // self.stride, self.stride, self.attention
        keys, values = parts.keys_values(features.patches_BNC)

        def windows(map_BNC: torch.Tensor) -> torch.Tensor:
            cut = map_BNC.view(-1, side, stride, side, stride, parts.heads, parts.head_width)
            return cut.permute(0, 1, 3, 2, 4, 5, 6).reshape(-1, count, stride * stride, parts.heads, parts.head_width)

        queries = parts.query_norm(self.query_MC).view(count, 1, parts.heads, parts.head_width)
        # One query against s*s keys is a product and a sum: no attention kernel beats it at this size.
        logits = (windows(keys) * queries).sum(-1) * parts.head_width**-0.5
        pooled = (logits.softmax(dim=2).unsqueeze(-1) * windows(values)).sum(2)
        return CompressedTokens(tokens_BMC=parts.output(pooled.flatten(2)))
