"""Recoverable Compression (arXiv 2409.01179): patches for the image, patches for the question, the rest merged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from qmop.compressors.base import Compressor, Declaration, Reads, one_of
from qmop.compressors.outliers import Tail, count_outliers
from qmop.compressors.registry import register
from qmop.compressors.selection import asked_budget, full_precision, need_query, take
from qmop.compressors.values import finite, whole
from qmop.features import CompressedTokens, Query, VisualFeatures

Mode = Literal["adaptive", "fixed", "official"]


@dataclass(frozen=True)
class _Scores:
    """What decides about a patch.

    Attributes:
        importance_BN: class attention, single precision.
        relevance_BN: cosine to the question over the root of the text space's width.
        keys_BNC: keys of all heads side by side, of unit length.
    """

    importance_BN: Tensor
    relevance_BN: Tensor
    keys_BNC: Tensor


@dataclass(frozen=True)
class _Plan:
    """What becomes of the patches.

    Attributes:
        kept_BN: true at patches that stay as they are.
        centre_BN: true at centres of clusters.
        rank_BN: place of each remaining patch by falling attention, N for kept ones.
    """

    kept_BN: Tensor
    centre_BN: Tensor
    rank_BN: Tensor


@dataclass(frozen=True)
class _Slots:
    """What stands at each place of the output.

    Attributes:
        patch_BM: the patch at the heart of a token; any patch where there is none.
        kept_BM: true at tokens that are a kept patch.
        cluster_BM: true at clusters.
        extra_BM: true at the extra token.
    """

    patch_BM: Tensor
    kept_BM: Tensor
    cluster_BM: Tensor
    extra_BM: Tensor


@register
class Recoverable(Compressor):
    """Visual filter, text recovery, secondary recovery by clusters, and one token for what is left over.

    1. Keep the patches of most class attention.
    2. Of the remaining, keep those nearest to the question.
    3. Of what then remains, those of most class attention become centres of clusters: to a centre are added its
       `members` nearest of all other remaining patches (other centres too; clusters may overlap), each times its
       class attention. Near is what has a similar key and suits the question: cosine of keys + `pull` * relevance.
    4. What is no centre, times its class attention, is summed into one extra token.

    Kept patches stand first, unchanged and in raster order, then the clusters by falling attention, then the extra
    token. Training-free; the modes differ in who decides how many:

    - `adaptive` (the paper's algorithm): in each step as many as there are upper outliers (local outlier factor)
      among the scores still in play. The budget is a cap. What comes later gives way first: the extra token, then
      the least clusters, then the least text picks, then the least visual picks; a pick that gives way stays among
      the remaining patches and so may still be merged.
    - `fixed`: exactly M tokens: the extra one, and M - 1 divided by `shares`.
    - `official`: the published code (commit d927594). Outliers of both tails count. Text picks are counted over all
      patches, with those already chosen set to the lowest score. The outliers' share of the remaining patches is
      taken of the width C to give the number of centres. Keys of the remaining patches are read at places 0, 1, ...
      instead of their own. Without a centre there is no extra token. The text is the last position of the padded
      question; patches enter text space without the final LayerNorm. Where ours differs: the text is the question,
      not the first line of the prompt, and padded to the tower's full length; shares are rounded down from whole
      numbers; clusters may have fewer than `members` patches to take (the code fails); and there is the cap: give N
      for none.

    Args:
        width: C.
        grid: side of the patch grid.
        tokens: M, the cap; the exact number in mode `fixed`.
        mode: see above.
        shares: visual picks, text picks and clusters of mode `fixed`, in any unit. The default keeps about half by
            attention, as the paper ranks it first, and leaves a fifth to clusters (open: the paper has no budget).
        neighbours: of the outlier factor, in both filters.
        centre_neighbours: of the outlier factor that counts centres.
        members: patches added to a centre.
        pull: weight of relevance beside the cosine of keys.

    Raises:
        ValueError: if a field is out of range, or there is no question.
    """

    declaration = Declaration(
        name="recoverable",
        source="Recoverable Compression, arXiv 2409.01179",
        reads=frozenset({"cls_attention", "keys", "text_space", "query"}),
        text_guided=True,
        fixed_count=False,
        elastic=True,
        split_heads=False,
    )

    def __init__(
        self,
        *,
        width: int,
        grid: int,
        tokens: int,
        mode: Mode = "adaptive",
        shares: Sequence[float] = (0.5, 0.3, 0.2),
        neighbours: int = 20,
        centre_neighbours: int = 10,
        members: int = 32,
        pull: float = 50.0,
    ) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        one_of("mode", mode, Mode)
        _check_shares(shares)
        counts = {"neighbours": neighbours, "centre_neighbours": centre_neighbours, "members": members}
        for field, value in counts.items():
            whole(field, value, "it counts patches")
        if not finite(pull):
            raise ValueError(f"pull is {pull!r}, but it weighs relevance: choose a finite number")
        self.mode, self.shares, self.members, self.pull = mode, tuple(shares), members, pull
        self.neighbours, self.centre_neighbours = neighbours, centre_neighbours
        if mode == "fixed":
            self.declaration = replace(type(self).declaration, fixed_count=True)
        if mode == "official":
            last: frozenset[Reads] = frozenset({"last_text"})
            reads = type(self).declaration.reads | last
            self.declaration = replace(type(self).declaration, reads=reads, text_norm=False)

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """At most M tokens `(B, M, C)`, exactly M in mode `fixed`; indices of the kept patches, -1 for merged tokens.

        Raises:
            ValueError: if there is no question.
        """
        cap, query = asked_budget(self, tokens), need_query(query, "recoverable")
        patches_BNC = features.patches_BNC
        with full_precision(patches_BNC):
            scores = self._scores(features, query)
            plan = self._plan(scores.importance_BN, self._keep(scores, cap), cap)
            slots = self._slots(plan, cap)
            merged_BMC = self._weights(scores, plan, slots) @ patches_BNC.float()
        heart_BMC = take(patches_BNC, slots.patch_BM) * (slots.kept_BM | slots.cluster_BM).unsqueeze(-1)
        return CompressedTokens(
            tokens_BMC=(heart_BMC + merged_BMC).to(patches_BNC.dtype),
            mask_BM=None if self.mode == "fixed" else slots.kept_BM | slots.cluster_BM | slots.extra_BM,
            kept_BM=slots.patch_BM.masked_fill(~slots.kept_BM, -1),
        )

    def _scores(self, features: VisualFeatures, query: Query) -> _Scores:
        text_BE = query.need("last_BE") if self.mode == "official" else query.text_BE
        patches_BNE = features.need("text_space_BNE").float()
        cosine_BN = F.cosine_similarity(patches_BNE, text_BE.float().unsqueeze(1), dim=-1)
        return _Scores(
            importance_BN=features.need("cls_attention_BN").float(),
            relevance_BN=cosine_BN * patches_BNE.shape[-1] ** -0.5,
            keys_BNC=F.normalize(features.need("keys_BNHd").flatten(2).float(), dim=-1),
        )

    def _split(self, cap: int) -> tuple[int, int, int]:
        """Visual picks, text picks and clusters of mode `fixed`."""
        visual, text = (int(share / sum(self.shares) * (cap - 1) + 0.5) for share in self.shares[:2])
        text = min(text, cap - 1 - visual)
        return visual, text, cap - 1 - visual - text

    def _keep(self, scores: _Scores, cap: int) -> Tensor:
        """Both filters: true at patches that stay as they are, `(B, N)`."""
        importance_BN, relevance_BN = scores.importance_BN, scores.relevance_BN
        visual, text, _ = self._split(cap)
        everything = torch.ones_like(importance_BN, dtype=torch.bool)
        visual_B = self._count(visual, importance_BN, self.neighbours).clamp(max=cap)
        visual_BN = _rank(importance_BN, everything) < visual_B.unsqueeze(1)
        if self.mode == "official":
            lowest_B1 = relevance_BN.amin(dim=1, keepdim=True)
            text_B = count_outliers(relevance_BN.where(~visual_BN, lowest_B1), self.neighbours, tail="both")
            patches = relevance_BN.shape[1]
            text_B = (patches - visual_B) * text_B // patches
        else:
            text_B = self._count(text, relevance_BN, self.neighbours, ~visual_BN)
        text_B = torch.minimum(text_B, cap - visual_B)
        return visual_BN | (_rank(relevance_BN, ~visual_BN) < text_B.unsqueeze(1))

    def _count(self, share: int, score_BN: Tensor, neighbours: int, mask_BN: Tensor | None = None) -> Tensor:
        """How many a step takes: its share of a fixed budget, or the number of outliers."""
        if self.mode == "fixed":
            return torch.full((len(score_BN),), share, device=score_BN.device)
        tail: Tail = "both" if self.mode == "official" else "upper"
        return count_outliers(score_BN, neighbours, tail=tail, mask_BN=mask_BN)

    def _plan(self, importance_BN: Tensor, kept_BN: Tensor, cap: int) -> _Plan:
        """Choose centres among the remaining patches; those beyond the cap get no place."""
        left_BN = ~kept_BN
        centres_B = self._count(self._split(cap)[2], importance_BN, self.centre_neighbours, left_BN)
        if self.mode == "official":
            centres_B = self.width * centres_B // left_BN.sum(dim=1).clamp(min=1)
        rank_BN = _rank(importance_BN, left_BN)
        return _Plan(kept_BN=kept_BN, centre_BN=left_BN & (rank_BN < centres_B.unsqueeze(1)), rank_BN=rank_BN)

    def _slots(self, plan: _Plan, cap: int) -> _Slots:
        """Kept patches in raster order, centres by falling attention, the extra token."""
        patches = plan.rank_BN.shape[1]
        place_N = torch.arange(patches, device=plan.rank_BN.device)
        later_BN = torch.where(plan.centre_BN, patches + plan.rank_BN, 2 * patches)
        patch_BM = torch.where(plan.kept_BN, place_N, later_BN).sort(dim=1, stable=True).indices[:, :cap]
        kept_B1 = plan.kept_BN.sum(dim=1, keepdim=True)
        centres_B1 = plan.centre_BN.sum(dim=1, keepdim=True)
        extra_B1 = kept_B1 + centres_B1 < patches
        if self.mode == "official":
            extra_B1 = extra_B1 & (centres_B1 > 0)
        slot_M = place_N[:cap]
        return _Slots(
            patch_BM=patch_BM,
            kept_BM=slot_M < kept_B1,
            cluster_BM=(slot_M >= kept_B1) & (slot_M < kept_B1 + centres_B1),
            extra_BM=(slot_M == kept_B1 + centres_B1) & extra_B1,
        )

    def _weights(self, scores: _Scores, plan: _Plan, slots: _Slots) -> Tensor:
        """How much of each patch is added to each token, `(B, M, N)`."""
        keys_BNC, left_BN = scores.keys_BNC, ~plan.kept_BN
        if self.mode == "official":  # the i-th remaining patch gets the key of patch i
            keys_BNC = take(keys_BNC, (left_BN.cumsum(dim=1) - 1).clamp(min=0))
        cosine_BMN = take(keys_BNC, slots.patch_BM) @ keys_BNC.transpose(1, 2)
        place_N = torch.arange(left_BN.shape[1], device=left_BN.device)
        other_BMN = left_BN.unsqueeze(1) & (place_N != slots.patch_BM.unsqueeze(-1))
        near_BMN = _rank(cosine_BMN + self.pull * scores.relevance_BN.unsqueeze(1), other_BMN) < self.members
        merged_BMN = near_BMN & slots.cluster_BM.unsqueeze(-1)
        rest_BMN = (left_BN & ~plan.centre_BN).unsqueeze(1) & slots.extra_BM.unsqueeze(-1)
        return scores.importance_BN.unsqueeze(1) * (merged_BMN | rest_BMN)


def _rank(score: Tensor, among: Tensor) -> Tensor:
    """Places in falling order of the score among the marked, ties by index; the length of the row for the others."""
    order = score.masked_fill(~among, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(score.shape[-1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places).masked_fill(~among, score.shape[-1])


def _check_shares(shares: object) -> None:
    given = tuple(shares) if isinstance(shares, list | tuple) else ()
    if len(given) != 3 or not all(map(finite, given)) or min(given) < 0 or not 0 < sum(given) < math.inf:  # noqa: PLR2004
        raise ValueError(
            f"shares is {shares!r}, but it divides the budget among visual picks, text picks and clusters: "
            "give three numbers from 0 up, one of them positive"
        )
