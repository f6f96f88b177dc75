"""CDPruner: patches that fit the question and differ from each other, by a determinantal point process (2506.10967)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from qmop.compressors.base import Compressor, Declaration
from qmop.compressors.registry import register
from qmop.compressors.selection import asked_budget, full_precision, need_query, rank, raster, take
from qmop.compressors.values import finite
from qmop.features import CompressedTokens, Query, VisualFeatures

LIFT = 1e-6
"""Keeps the least relevant patch selectable (published code); also the least spread that is stretched to one."""

SPANNED = 1e-5
"""Squared distance from the span of the chosen below which a patch adds nothing that single precision can tell."""


def scaled_relevance(patches_BNE: Tensor, text_BE: Tensor) -> Tensor:
    """Relevance of each patch to its question, from nearly 0 to 1 within each image, `(B, N)`; positive.

    The cosine is negated: in CLIP, patches that the text speaks of lie further from it than the background. The
    scaling is by image, where the published code takes the least and largest of the whole batch.
    """
    relevance = -F.cosine_similarity(patches_BNE.float(), text_BE.float().unsqueeze(1), dim=-1)
    low, high = relevance.amin(1, keepdim=True), relevance.amax(1, keepdim=True)
    return (relevance - low + LIFT) / (high - low).clamp(min=LIFT)


@torch.no_grad()
def greedy_map(similarity_BNN: Tensor, weight_BN: Tensor, count: int) -> Tensor:
    """Greedy search for the subset with the largest determinant of diag(w) S diag(w), by incremental Cholesky.

    A step adds the patch that multiplies the determinant most: by w^2 times the patch's squared distance from the
    span of those chosen before. Cholesky runs on S alone, whose diagonal is one, so that rounding does not drown
    patches of small weight. Once every patch left lies in that span, the most heavily weighted of them follow.

    Args:
        similarity_BNN: S, positive semi-definite, single precision.
        weight_BN: w, not negative, and not zero throughout an image.
        count: M, at most N.

    Returns:
        Patch indices in the order of choice, `(B, M)`, none twice; ties go to the lower index.
    """
    batch, patches = weight_BN.shape
    residual_BN = similarity_BNN.diagonal(dim1=1, dim2=2).clone()
    prize_BN = (weight_BN / weight_BN.amax(1, keepdim=True)).square()
    last_BN = -1.0 - rank(weight_BN)
    factor_BMN = similarity_BNN.new_zeros(batch, count, patches)
    taken_BN = torch.zeros_like(residual_BN, dtype=torch.bool)
    chosen_BM = torch.zeros(batch, count, dtype=torch.long, device=weight_BN.device)
    for step in range(count):
        gain_BN = torch.where(residual_BN > SPANNED, prize_BN * residual_BN, last_BN)
        pick_B1 = gain_BN.masked_fill(taken_BN, -torch.inf).argmax(dim=1, keepdim=True)
        row_BN = _cholesky_row(similarity_BNN, factor_BMN[:, :step], residual_BN, pick_B1)
        factor_BMN[:, step] = row_BN
        residual_BN -= row_BN.square()
        taken_BN.scatter_(1, pick_B1, value=True)
        chosen_BM[:, step] = pick_B1.squeeze(1)
    return chosen_BM


def _cholesky_row(similarity_BNN: Tensor, factor_BKN: Tensor, residual_BN: Tensor, pick_B1: Tensor) -> Tensor:
    """The factor's next row; next to nothing where the picked patch lies in the span already."""
    own_BK1 = factor_BKN.gather(2, pick_B1.unsqueeze(1).expand(-1, factor_BKN.shape[1], -1))
    explained_BN = (own_BK1.transpose(1, 2) @ factor_BKN).squeeze(1)
    left_B1 = residual_BN.gather(1, pick_B1)
    return (take(similarity_BNN, pick_B1).squeeze(1) - explained_BN) / left_B1.clamp(min=SPANNED).sqrt()


@register
class CDPruner(Compressor):
    """Greedy choice of M patches under a kernel of relevance to the question and similarity to each other.

    Similarity is the cosine of connected tokens; relevance that of patches in text space and the question's end
    token, see `scaled_relevance`. A question of several segments enters by the mean of its segments. Without a spread
    in relevance, diversity alone decides.

    Args:
        width: D, the language width, since tokens are connected first.
        grid: side of the patch grid.
        tokens: M; any budget from 1 to N may be asked for.
        theta: weight of relevance against diversity, from 0 up to but not including 1: the kernel then takes
            exp(theta / (2 (1 - theta)) r) in place of r (an option of the published code, off there).

    Raises:
        ValueError: if theta is out of range.
    """

    declaration = Declaration(
        name="cdpruner",
        source="CDPruner, arXiv 2506.10967",
        reads=frozenset({"text_space", "query"}),
        text_guided=True,
        elastic=True,
        readout="connector_first",
        text_layer=-2,
        text_norm=True,
    )

    def __init__(self, *, width: int, grid: int, tokens: int, theta: float | None = None) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        if theta is not None and not (finite(theta) and 0.0 <= theta < 1.0):
            raise ValueError(f"theta is {theta!r}, but it weighs relevance against diversity: choose 0 to below 1")
        self.theta = theta

    def weight(self, relevance_BN: Tensor) -> Tensor:
        """What the kernel multiplies similarities by, `(B, N)`, up to a factor common to an image."""
        if self.theta is None:
            return relevance_BN
        exponent = self.theta / (2 * (1 - self.theta)) * (relevance_BN - relevance_BN.amax(1, keepdim=True))
        return exponent.exp()

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """The kept patches in raster order, unchanged, `(B, M, D)`, and their indices.

        Raises:
            ValueError: if there is no question, the budget exceeds the patches, or patches in text space are missing.
        """
        return self._keep(features, need_query(query, "cdpruner"), tokens)

    def align(self, features: VisualFeatures, query: Query | None = None) -> CompressedTokens:
        """By diversity alone where there is no question."""
        return self._keep(features, query, None)

    def _keep(self, features: VisualFeatures, query: Query | None, tokens: int | None) -> CompressedTokens:
        count = asked_budget(self, tokens)
        with full_precision(features.patches_BNC):
            unit_BND = F.normalize(features.patches_BNC.detach().float(), dim=-1)
            weight_BN = unit_BND.new_ones(unit_BND.shape[:2])
            if query is not None:
                weight_BN = self.weight(scaled_relevance(features.need("text_space_BNE"), query.text_BE))
            kept_BM = raster(greedy_map(unit_BND @ unit_BND.transpose(1, 2), weight_BN, count))
        return CompressedTokens(tokens_BMC=take(features.patches_BNC, kept_BM), kept_BM=kept_BM)
