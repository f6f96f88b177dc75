"""QMoP's pooling branch: attention inside local windows, queried by a learned grid (Sec. 3.3)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from qmop.compressors.attention import KeyValue, Norm, ValueInit
from qmop.compressors.base import Compressor, Declaration, budget, fitting_budgets, stride_of
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
        elastic: take any fitting budget per call, with the query map interpolated to its size; training draws one
            per step.
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
        elastic: bool = False,
    ) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        self.stride, self.elastic = stride_of(grid, tokens), elastic
        if elastic:
            self.declaration = replace(type(self).declaration, elastic=True)
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
        count = tokens if self.elastic and tokens is not None else budget(self.tokens, tokens, "window_pool")
        stride, parts = stride_of(self.grid, count), self.attention
        side = self.grid // stride
        keys, values = parts.keys_values(features.patches_BNC)

        def windows(map_BNC: Tensor) -> Tensor:
            cut = map_BNC.view(-1, side, stride, side, stride, parts.heads, parts.head_width)
            return cut.permute(0, 1, 3, 2, 4, 5, 6).reshape(-1, count, stride * stride, parts.heads, parts.head_width)

        queries = parts.query_norm(self.query_map(side)).view(count, 1, parts.heads, parts.head_width)
        # One query against s*s keys is a product and a sum: no attention kernel beats it at this size.
        logits = (windows(keys) * queries).sum(-1) * parts.head_width**-0.5
        pooled = (logits.softmax(dim=2).unsqueeze(-1) * windows(values)).sum(2)
        return CompressedTokens(tokens_BMC=parts.output(pooled.flatten(2)))

    def training_budgets(self) -> tuple[int, ...]:
        """Where elastic, every even stride's count from M down to four, as `qmop-elastic`; M alone otherwise."""
        return fitting_budgets(self.grid, self.tokens) if self.elastic else (self.tokens,)

    def query_map(self, side: int) -> Tensor:
        """The learned queries on a `side` x `side` map, `(side * side, C)`; bilinear at other sizes than their own."""
        built = self.grid // self.stride
        if side == built:
            return self.query_MC
        map_1CHW = self.query_MC.float().T.unflatten(1, (built, built)).unsqueeze(0)
        resized = F.interpolate(map_1CHW, size=(side, side), mode="bilinear", antialias=side < built)
        return resized[0].flatten(1).T.to(self.query_MC.dtype)
