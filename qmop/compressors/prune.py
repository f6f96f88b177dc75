"""QMoP's pruning branch: keep the patches that matter to the image and to the question (Sec. 3.3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from qmop.compressors.base import Compressor, Declaration, in_range, one_of
from qmop.compressors.registry import register
from qmop.compressors.selection import best, raster, take
from qmop.compressors.values import finite
from qmop.features import CompressedTokens, Query, VisualFeatures

Scale = Literal["minmax", "softmax"]
Measure = Literal["cosine", "distance"]
Order = Literal["raster", "score"]
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
        measure: closeness of a patch to the question: the cosine, or the negated distance (the paper says only that
            it rests on a distance in the text representation space).
        order: of the kept tokens: as in the picture, or best first (open in the paper; fusion adds place by place).
        relevance_sign: 1 keeps the patches most like the question, -1 the least (some towers point the other way).
    """

    declaration = Declaration(
        name="prune",
        source="QMoP, arXiv 2603.21232, Sec. 3.3",
        reads=frozenset({"cls_attention", "text_space", "query"}),
        text_guided=True,
        elastic=True,
    )

    def __init__(
        self,
        *,
        width: int,
        grid: int,
        tokens: int,
        lam: float = 0.5,
        scale: Scale = "minmax",
        measure: Measure = "cosine",
        order: Order = "raster",
        relevance_sign: Sign = 1,
    ) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        if not (finite(lam) and 0.0 <= lam <= 1.0):
            raise ValueError(f"lam is {lam!r}, but it mixes two scores: choose a number from 0 to 1")
        one_of("scale", scale, Scale)
        one_of("measure", measure, Measure)
        one_of("order", order, Order)
        one_of("relevance_sign", relevance_sign, Sign)
        self.lam, self.scale, self.relevance_sign = lam, scale, relevance_sign
        self.measure, self.order = measure, order
        if lam == 1.0:  # the question has no say
            self.declaration = replace(self.declaration, reads=frozenset({"cls_attention"}), text_guided=False)

    def importance(self, features: VisualFeatures) -> Tensor:
        """The class token's attention, rescaled, `(B, N)`."""
        return rescale(features.need("cls_attention_BN").float(), self.scale)

    def score(self, features: VisualFeatures, query: Query | None) -> Tensor:
        """The mixed score of every patch, `(B, N)`; importance alone where lambda is 1.

        Raises:
            ValueError: if relevance counts and there is no question.
        """
        importance = self.importance(features)
        if self.lam == 1.0:
            return importance
        if query is None:
            raise ValueError(
                "query is missing, but prune compares patches with the question: "
                "pass query= to the processor, or build it with lam=1"
            )
        patches_BNE, text_B1E = features.need("text_space_BNE").float(), query.text_BE.float().unsqueeze(1)
        if self.measure == "cosine":
            closeness = F.cosine_similarity(patches_BNE, text_B1E, dim=-1)
        else:
            closeness = -(patches_BNE - text_B1E).norm(dim=-1)
        return self.lam * importance + (1 - self.lam) * rescale(self.relevance_sign * closeness, self.scale)

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """The kept patches, unchanged, `(B, M, C)`, and their indices."""
        return self._keep(features, self.score(features, query), tokens)

    def align(self, features: VisualFeatures, query: Query | None = None) -> CompressedTokens:
        """By importance alone where there is no question."""
        return self._keep(features, self.importance(features) if query is None else self.score(features, query), None)

    def _keep(self, features: VisualFeatures, score_BN: Tensor, tokens: int | None) -> CompressedTokens:
        count = self.tokens if tokens is None else in_range(tokens, self.grid)
        kept_BM = best(score_BN, count)
        if self.order == "raster":
            kept_BM = raster(kept_BM)
        return CompressedTokens(tokens_BMC=take(features.patches_BNC, kept_BM), kept_BM=kept_BM)
