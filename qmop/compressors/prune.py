"""QMoP's pruning branch: keep the patches that matter to the image and to the question (Sec. 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from qmop.compressors.base import Compressor, Declaration, in_range, one_of
from qmop.compressors.registry import register
from qmop.features import CompressedTokens, Query, VisualFeatures

Scale = Literal["minmax", "softmax"]
Sign = Literal[1, -1]


def rescale(score_BN: Tensor, how: Scale) -> Tensor:
    """Scores of each image brought to one scale, so that two kinds can be mixed; constant scores become zero."""
    if how == "softmax":
        return score_BN.softmax(dim=1)
    low, high = score_BN.amin(1, keepdim=True), score_BN.amax(1, keepdim=True)
    return (score_BN - low) / (high - low).clamp(min=torch.finfo(score_BN.dtype).tiny)


@register
class Prune(Compressor):
    """Top-M of `lam * importance + (1 - lam) * relevance`, in raster order.

    Importance is the class token's attention in the last layer; relevance is the cosine between a patch in text
    space and the question's end token. The paper's dynamic threshold set by the ratio equals top-M.

    Args:
        width: C.
        grid: side of the patch grid.
        tokens: M.
        lam: the paper's lambda, 0.5.
        scale: how both scores are brought to one scale per image (open in the paper, which mixes them as they are).
        relevance_sign: 1 keeps the patches most like the question, -1 the least (some towers point the other way).
    """

    declaration = Declaration(
        name="prune",
        source="QMoP, arXiv 2603.21232, Sec. 3.3",
        reads=frozenset({"cls_attention", "text_space", "query"}),
        text_guided=True,
    )

    def __init__(
        self,
        *,
        width: int,
        grid: int,
        tokens: int,
        lam: float = 0.5,
        scale: Scale = "minmax",
        relevance_sign: Sign = 1,
    ) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        if not 0.0 <= lam <= 1.0:
            raise ValueError(f"lam is {lam}, but it mixes two scores: choose a number from 0 to 1")
        one_of("scale", scale, Scale)
        one_of("relevance_sign", relevance_sign, Sign)
        self.lam, self.scale, self.relevance_sign = lam, scale, relevance_sign

    def score(self, features: VisualFeatures, query: Query | None) -> Tensor:
        """The mixed score of every patch, `(B, N)`; importance alone where there is no question or lambda is 1."""
        importance = rescale(features.need("cls_attention_BN").float(), self.scale)
        if query is None or self.lam == 1.0:
            return importance
        patches_BNE = features.need("text_space_BNE").float()
        cosine = F.cosine_similarity(patches_BNE, query.text_BE.float().unsqueeze(1), dim=-1)
        return self.lam * importance + (1 - self.lam) * rescale(self.relevance_sign * cosine, self.scale)

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """The kept patches, unchanged, `(B, M, C)`, and their indices."""
        count = self.tokens if tokens is None else in_range(tokens, self.grid)
        order = self.score(features, query).sort(dim=1, descending=True, stable=True).indices
        kept_BM = order[:, :count].sort(dim=1).values
        index = kept_BM.unsqueeze(-1).expand(-1, -1, features.patches_BNC.shape[-1])
        return CompressedTokens(tokens_BMC=features.patches_BNC.gather(1, index), kept_BM=kept_BM)
