"""The blind reference: constant tokens, whatever the picture. A model trained with it shows what words alone give."""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization as init

from qmop.compressors.base import Compressor, Declaration, budget
from qmop.compressors.registry import register
from qmop.features import CompressedTokens, Query, VisualFeatures


@register
class Blind(Compressor):
    """M learned tokens, the same for every image."""

    declaration = Declaration(name="blind", source="reference row of VTCBench", trained=True)

    def __init__(self, *, width: int, grid: int, tokens: int) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        self.token_MC = nn.Parameter(torch.empty(tokens, width))
        self.initialise()

    def initialise(self) -> None:
        """Small random tokens."""
        init.trunc_normal_(self.token_MC, std=0.02)

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """The constant tokens, `(B, M, C)`."""
        del query
        budget(self.tokens, tokens, "blind")
        return CompressedTokens(tokens_BMC=self.token_MC.expand(len(features.patches_BNC), -1, -1))
