"""QMoP's resampler branch: M learned queries, one cross-attention over all patches (Sec. 3.3)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from qmop.compressors.attention import KeyValue, Norm, ValueInit
from qmop.compressors.base import Compressor, Declaration, budget, nested_budgets
from qmop.compressors.registry import register
from qmop.compressors.values import whole
from qmop.features import CompressedTokens, Query, VisualFeatures


def sincos_2d(grid: int, width: int) -> Tensor:
    """Fixed two-dimensional sine-cosine positions, `(grid * grid, width)`; half the width for rows, half for columns.

    Raises:
        ValueError: if the width is not a multiple of four.
    """
    if width % 4:
        raise ValueError(f"width is {width}, but two-dimensional positions need a multiple of 4")
    rates = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(grid)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(grid * grid, width)


@register
class Resampler(Compressor):
    """softmax(Q K^T / sqrt(d)) V with M learned queries.

    Args:
        width: C.
        grid: side of the patch grid.
        tokens: M.
        heads: attention heads (open in the paper).
        norm: where LayerNorm stands (open in the paper).
        value_init: start of the value path, see `KeyValue`.
        positions: add fixed sine-cosine positions to the keys (open in the paper).
        nested: take any smaller budget per call, which uses the first queries only; training draws one per step.
    """

    declaration = Declaration(name="resampler", source="QMoP, arXiv 2603.21232, Sec. 3.3", trained=True)
    position_NC: Tensor

    def __init__(
        self,
        *,
        width: int,
        grid: int,
        tokens: int,
        heads: int = 8,
        norm: Norm = "qkv",
        value_init: ValueInit = "normal",
        positions: bool = True,
        nested: bool = False,
    ) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        self.positions, self.nested = positions, nested
        if nested:
            self.declaration = replace(type(self).declaration, elastic=True)
        self.query_MC = nn.Parameter(torch.empty(tokens, width))
        self.attention = KeyValue(width, heads, norm, value_init)
        self.register_buffer("position_NC", torch.empty(grid * grid, width), persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """Small random queries, then the projections; the buffer too, because it is not part of a checkpoint."""
        init.trunc_normal_(self.query_MC, std=0.02)
        self.attention.initialise()
        init.copy_(self.position_NC, sincos_2d(self.grid, self.width).to(self.position_NC.device))

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """M tokens without spatial order, `(B, M, C)`."""
        del query
        count = self._count(tokens)
        parts, batch = self.attention, len(features.patches_BNC)
        keys, values = parts.keys_values(features.patches_BNC, self.position_NC if self.positions else None)

        def heads(states: Tensor) -> Tensor:
            return states.unflatten(-1, (parts.heads, parts.head_width)).transpose(-3, -2)

        queries = heads(parts.query_norm(self.query_MC[:count])).expand(batch, -1, -1, -1)
        mixed = F.scaled_dot_product_attention(queries, heads(keys), heads(values))
        return CompressedTokens(tokens_BMC=parts.output(mixed.transpose(1, 2).reshape(batch, count, self.width)))

    def training_budgets(self) -> tuple[int, ...]:
        """2, 4, ..., M where queries are nested, as MQT; M alone otherwise."""
        return nested_budgets(self.tokens) if self.nested else (self.tokens,)

    def _count(self, tokens: int | None) -> int:
        if not self.nested or tokens is None:
            return budget(self.tokens, tokens, "resampler")
        return whole("tokens", tokens, f"this resampler has {self.tokens} queries", most=self.tokens)
