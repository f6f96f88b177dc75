"""The Matryoshka query transformer: nested queries, of which any number m of the first may be asked for (MQT-LLaVA)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from qmop.compressors.base import Compressor, Declaration, nested_budgets, one_of
from qmop.compressors.convolutions import as_map
from qmop.compressors.registry import register
from qmop.compressors.resampler import sincos_2d
from qmop.compressors.values import divisor, whole
from qmop.features import CompressedTokens, Query, VisualFeatures

Keys = Literal["positions", "content"]


def columns_first(side: int, width: int) -> Tensor:
    """Positions on a plane, `(side^2, width)`, the column in the first half as the published weights expect it."""
    return sincos_2d(side, width).view(side, side, width).transpose(0, 1).reshape(side * side, width)


def resized(table: Tensor, grid: int) -> Tensor:
    """A square table of positions at another side, bicubic, `(grid^2, width)`."""
    side = math.isqrt(len(table))
    map_1CHW = table.view(1, side, side, -1).permute(0, 3, 1, 2)
    scaled = F.interpolate(map_1CHW, size=(grid, grid), mode="bicubic", align_corners=False)
    return scaled.permute(0, 2, 3, 1).reshape(grid * grid, -1)


@register
class MatryoshkaQueries(Compressor):
    """One cross-attention of learned queries; m tokens are the answers to the first m queries.

    Trained with a budget drawn per step, one of 2, 4, ..., `queries`, one model serves every budget: pass `tokens=`.
    The first m tokens are the same whatever the budget. (The paper draws in its second stage only and shows all 256
    in the first; here both stages draw.)

    The paper describes attention over the image's features, but in the published code, which its numbers come from,
    the keys are the positions alone: where a query looks does not depend on the image, and its content enters
    through the values only. That is the default; `keys="content"` adds the features to the keys.

    A bias of the keys is left out: it would shift all logits of a query alike, so it changes nothing.

    Args:
        width: C.
        grid: side of the patch grid.
        tokens: M, the budget where a call names none.
        language_width: D.
        queries: how many queries are learned, at least M; the most that a call may ask for, if there are as many
            patches.
        heads: attention heads.
        keys: `positions` (the published code) or `content`.

    Raises:
        ValueError: if the width does not divide into the heads or is no multiple of 4, or another size is no count.
    """

    declaration = Declaration(
        name="mqt", source="MQT-LLaVA, arXiv 2405.19315", trained=True, elastic=True, readout="own"
    )
    place_QC: Tensor
    place_NC: Tensor

    def __init__(
        self,
        *,
        width: int,
        grid: int,
        tokens: int,
        language_width: int = 4096,
        queries: int = 256,
        heads: int = 16,
        keys: Keys = "positions",
    ) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        one_of("keys", keys, Keys)
        whole("language_width", language_width, "the language model reads that many channels")
        whole("queries", queries, "a token needs a query, of which the paper has 256")
        divisor("heads", heads, "the width", width)
        self.queries, self.heads, self.keys = max(queries, tokens), heads, keys
        self.query_QC = nn.Parameter(torch.empty(self.queries, width))
        self.query_norm, self.key_norm, self.value_norm = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.query, self.value, self.output = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)
        self.readout = nn.Linear(width, language_width, bias=False)
        self.register_buffer("place_QC", torch.empty(self.queries, width), persistent=False)
        self.register_buffer("place_NC", torch.empty(grid * grid, width), persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """As published: small random queries, Xavier projections, and a readout of deviation 1 / sqrt(D)."""
        init.trunc_normal_(self.query_QC, std=0.02)
        bound = (6 / (self.width + 3 * self.width)) ** 0.5  # the three projections count as one matrix
        for linear in (self.query, self.key, self.value):
            init.uniform_(linear.weight, -bound, bound)
        init.trunc_normal_(self.output.weight, std=0.02)
        for linear in (self.query, self.value, self.output):
            init.zeros_(linear.bias)
        init.normal_(self.readout.weight, std=self.readout.out_features**-0.5)
        table = columns_first(math.isqrt(self.queries - 1) + 1, self.width).to(self.place_QC.device)
        init.copy_(self.place_QC, table[: self.queries])
        init.copy_(self.place_NC, resized(table, self.grid))

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """The first m tokens, `(B, m, D)`, without spatial order.

        Raises:
            ValueError: if more tokens are asked for than there are queries or patches, or the grid is another.
        """
        del query
        count, patches_BNC = self._count(tokens), as_map(features, self.grid).flatten(1, 2)
        places_NC = self.place_NC.to(patches_BNC.dtype)
        looked_at = places_NC[None] if self.keys == "positions" else patches_BNC + places_NC
        asked_QC = self.query_QC[:count] + self.place_QC[:count].to(self.query_QC.dtype)
        mixed_BhMd = F.scaled_dot_product_attention(
            self._split(self.query(self.query_norm(asked_QC))[None], patches_BNC),
            self._split(self.key(self.key_norm(looked_at)), patches_BNC),
            self._split(self.value(self.value_norm(patches_BNC)), patches_BNC),
        )
        return CompressedTokens(tokens_BMC=self.readout(self.output(mixed_BhMd.transpose(1, 2).flatten(2))))

    def training_budgets(self) -> tuple[int, ...]:
        """2, 4, ..., up to all queries, or as many as there are patches."""
        return nested_budgets(self._most)

    @property
    def _most(self) -> int:
        return min(self.queries, self.grid**2)

    def _split(self, states: Tensor, patches_BNC: Tensor) -> Tensor:
        """States by head, `(B, heads, length, head width)`; what all images share is not copied."""
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2).expand(len(patches_BNC), -1, -1, -1)

    def _count(self, asked: int | None) -> int:
        if asked is None:
            return self.tokens
        why = f"this mqt has {self.queries} queries for {self.grid**2} patches"
        return whole("tokens", asked, why, most=self._most)
