"""QueCC: TokenPacker's attention in regions, queried by patches that have heard the question."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from qmop.compressors.base import Compressor, Declaration, budget, stride_of
from qmop.compressors.registry import register
from qmop.compressors.tokenpacker import EPS, NormedMlp, RegionAttention, key_and_value, levels_of, regions
from qmop.compressors.values import whole
from qmop.features import CompressedTokens, Query, VisualFeatures


@register
class QueCC(Compressor):
    """Point-to-region attention whose queries are patches plus question, gathered by a learned convolution.

    The question's state in the language model is added to every patch of the selected layer; after an MLP a depthwise
    convolution with kernel and stride s makes one query of each region. Keys, values and attention are TokenPacker's.

    Args:
        width: C.
        grid: side of the patch grid.
        tokens: M = (grid / s)^2; the paper has s of 4, 6, 12 and 24, so 36, 16, 4 and 1 tokens of 576.
        language_width: D, the width of the question's state in the language model; the model's own by default.
        levels: hidden states that stand side by side in `features.levels_BNF`, low to high.
        heads: attention heads; 8 of 128 in the paper.
    """

    declaration = Declaration(
        name="quecc",
        source="QueCC, arXiv 2411.03312",
        reads=frozenset({"levels", "query", "language_query"}),
        trained=True,
        text_guided=True,
    )

    def __init__(
        self, *, width: int, grid: int, tokens: int, language_width: int = 4096, levels: int = 4, heads: int = 8
    ) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        whole("language_width", language_width, "the language model's states have that many channels")
        self.levels, self.stride = levels, stride_of(grid, tokens)
        self.side = grid // self.stride
        self.text, self.text_norm = nn.Linear(language_width, width), nn.LayerNorm(width, eps=EPS)
        self.query = NormedMlp(width, width)
        # One weight per place in a region and channel: a depthwise convolution whose kernels do not overlap.
        self.pool_KC = nn.Parameter(torch.empty(self.stride**2, width))
        self.pool_bias_C = nn.Parameter(torch.empty(width))
        self.key, self.value = key_and_value(levels, width)
        self.attention = RegionAttention(width, heads)
        self.initialise()

    def initialise(self) -> None:
        """Uniform up to one over the square root of the inputs, as published (torch's own start for these layers)."""
        for linear in self.modules():
            if isinstance(linear, nn.Linear):
                for parameter in (linear.weight, linear.bias):
                    init.uniform_(parameter, -(linear.in_features**-0.5), linear.in_features**-0.5)
        init.zeros_(self.attention.out_proj.bias)
        for parameter in (self.pool_KC, self.pool_bias_C):
            init.uniform_(parameter, -1 / self.stride, 1 / self.stride)

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """One token per region in raster order, `(B, M, C)`.

        Raises:
            ValueError: without a question.
        """
        budget(self.tokens, tokens, "quecc")
        if query is None:
            raise ValueError(
                "query is missing, but quecc adds the question to every patch: pass query= to the processor"
            )
        return self._compress(features, query)

    def align(self, features: VisualFeatures, query: Query | None = None) -> CompressedTokens:
        """Where there is no question, the patches ask alone."""
        return self._compress(features, query)

    def _compress(self, features: VisualFeatures, query: Query | None) -> CompressedTokens:
        levels, asking = levels_of(features, self, self.levels), features.patches_BNC
        if query is not None:
            asking = asking + self._text(query.need("language_BD").to(asking.dtype)).unsqueeze(1)
        weight = self.pool_KC.unflatten(0, (self.stride, self.stride))
        coarse = (regions(self.query(asking), self.side) * weight).sum((3, 4)).flatten(1, 2) + self.pool_bias_C
        return CompressedTokens(tokens_BMC=self.attention(coarse, self.key(levels), self.value(levels), self.side))

    def _text(self, language_BD: Tensor) -> Tensor:
        return self.text_norm(self.text(language_BD))
