"""LLaVA-PruMerge and PruMerge+: keep what the class token looks at, merge the rest into it (arXiv 2403.15388)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from qmop.compressors.base import Compressor, Declaration, one_of
from qmop.compressors.registry import register
from qmop.compressors.selection import asked_budget, best, full_precision, rank, take
from qmop.compressors.values import whole
from qmop.features import CompressedTokens, Query, VisualFeatures

Mode = Literal["fixed", "adaptive"]
Order = Literal["attention", "raster"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which patches are kept, and why.

    Attributes:
        top_BN: by attention.
        spaced_BN: by their place on the grid.
    """

    top_BN: Tensor
    spaced_BN: Tensor

    @property
    def kept_BN(self) -> Tensor:
        """For either reason."""
        return self.top_BN | self.spaced_BN


def fixed_choice(rank_BN: Tensor, count: int, *, plus: bool) -> Choice:
    """Exactly `count` patches: the top ones, or (`plus`) half of them at uniform places and the top ones besides.

    Of K patches K // 2 stand at uniform places, the middles of as many equal stretches of the raster: 72 of 144 over
    576 patches are every eighth from 4 on. Where a top patch stands at such a place, the next best one is kept too,
    so that K different patches remain; the published code keeps that patch twice and lets it enrich others twice.
    """
    patches = rank_BN.shape[1]
    spaced = count // 2 if plus else 0
    place_N = torch.arange(patches, device=rank_BN.device)
    middles = (2 * place_N[:spaced] + 1) * patches // (2 * max(1, spaced))
    spaced_BN = torch.zeros_like(place_N, dtype=torch.bool).scatter(0, middles, value=True).expand_as(rank_BN)
    free_BN = rank_BN.masked_fill(spaced_BN, patches)
    worst_B1 = free_BN.sort(dim=1).values[:, : count - spaced].amax(1, keepdim=True) if count else -1
    return Choice(rank_BN <= worst_B1, spaced_BN)


def adaptive_choice(attention_BN: Tensor, rank_BN: Tensor, *, plus: bool) -> Choice:
    """Patches whose attention is an upper outlier, and (`plus`) three times as many at uniform places.

    An outlier lies above Q3 + 1.5 IQR of its image. Uniform places are 0, s, 2 s, ... short of the last patch with
    s = floor(floor(N / outliers) / 3), and at least 1 (published code).
    """
    low_B1, high_B1 = (attention_BN.quantile(share, dim=1, keepdim=True) for share in (0.25, 0.75))
    outliers_B1 = (attention_BN > high_B1 + 1.5 * (high_B1 - low_B1)).sum(dim=1, keepdim=True)
    top_BN = rank_BN < outliers_B1
    if not plus:
        return Choice(top_BN, torch.zeros_like(top_BN))
    patches = rank_BN.shape[1]
    place_N = torch.arange(patches, device=rank_BN.device)
    step_B1 = (patches // outliers_B1.clamp(min=1) // 3).clamp(min=1)
    return Choice(top_BN, (place_N % step_B1 == 0) & (place_N < patches - 1))


@register
class PruMerge(Compressor):
    """Kept patches, each enriched by its neighbours, and one extra token made of all patches that are not kept.

    The score is the class token's attention in the tower's last block, its heads not split. A kept patch x_i becomes
    x_i + sum of a_j x_j over the 32 other patches, kept or not, whose keys are nearest to its own by cosine; the extra
    token is the sum of a_j x_j over the patches not kept. The weights a_j are attention as it is, not normalised.

    The budget M counts every token that the language model sees: M - 1 kept patches and the extra token. PruMerge+
    with the published 144 patches of a 24 x 24 grid (the top 72 and every eighth from 4 on) is therefore
    `tokens=145`. In adaptive mode M is the most that an image may have; where the published rule would keep more than
    M - 1 patches of an image, the choice of the fixed mode takes its place.

    `kept_BM` names the patch that a token grew from, -1 for the extra token. `groups_BN` names for a kept patch its
    own token and for every other the extra one; neighbourhoods, which overlap, do not show there.

    Args:
        width: C.
        grid: side of the patch grid.
        tokens: M; any budget from 1 to N may be asked for.
        mode: `fixed` keeps exactly M - 1 patches; `adaptive` counts outliers of attention, image by image.
        plus: add patches at uniform places (PruMerge+), see `fixed_choice` and `adaptive_choice`.
        order: of the kept patches: by falling `attention`, then those added in raster order (published code), or all
            in `raster` order. The extra token comes last.
        neighbours: how many others enrich a kept patch; all others where the image has fewer.

    Raises:
        ValueError: if a choice is none of the offered, or the number of neighbours is negative.
    """

    declaration = Declaration(
        name="prumerge",
        source="LLaVA-PruMerge, arXiv 2403.15388",
        reads=frozenset({"cls_attention", "keys"}),
        elastic=True,
        split_heads=False,
    )

    def __init__(
        self,
        *,
        width: int,
        grid: int,
        tokens: int,
        mode: Mode = "fixed",
        plus: bool = False,
        order: Order = "attention",
        neighbours: int = 32,
    ) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        one_of("mode", mode, Mode)
        one_of("order", order, Order)
        whole("neighbours", neighbours, "it is a number of patches", least=0)
        self.mode, self.plus, self.order, self.neighbours = mode, plus, order, neighbours
        self.declaration = dataclasses.replace(type(self).declaration, fixed_count=mode == "fixed")

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """Kept patches and the extra token, `(B, M, C)`; in adaptive mode the real ones come first, then zeros.

        Raises:
            ValueError: if the budget exceeds the patches, or attention or keys are missing.
        """
        del query
        attention_BN = features.need("cls_attention_BN").float()
        count = asked_budget(self, tokens) - 1
        key_BN = self._sequence(attention_BN, count)
        kept_BN = key_BN < 2 * key_BN.shape[1]
        order_BK, counts_B1 = key_BN.argsort(dim=1)[:, :count], kept_BN.sum(dim=1, keepdim=True)
        with full_precision(attention_BN):
            patches_BNC = features.patches_BNC.float()
            extra_B1C = attention_BN.masked_fill(kept_BN, 0.0).unsqueeze(1) @ patches_BNC
            share_BKN = self._shares(features.need("keys_BNHd"), attention_BN, order_BK)
            tokens_BMC = torch.cat([take(patches_BNC, order_BK) + share_BKN @ patches_BNC, extra_B1C], dim=1)
        tokens_BMC = tokens_BMC.to(features.patches_BNC.dtype)
        return _compact(tokens_BMC, order_BK, counts_B1, key_BN.shape[1], padded=self.mode == "adaptive")

    def _sequence(self, attention_BN: Tensor, count: int) -> Tensor:
        """Sort keys, all different: below 2N for kept patches in their order of output, from 2N on for the others."""
        rank_BN = rank(attention_BN)
        choice = fixed_choice(rank_BN, count, plus=self.plus)
        if self.mode == "adaptive":
            free = adaptive_choice(attention_BN, rank_BN, plus=self.plus)
            fits_B1 = free.kept_BN.sum(dim=1, keepdim=True) <= count
            choice = Choice(
                torch.where(fits_B1, free.top_BN, choice.top_BN), torch.where(fits_B1, free.spaced_BN, choice.spaced_BN)
            )
        patches = rank_BN.shape[1]
        place_N = torch.arange(patches, device=rank_BN.device)
        first_BN = torch.where(choice.top_BN, rank_BN, patches + place_N) if self.order == "attention" else place_N
        return torch.where(choice.kept_BN, first_BN, 2 * patches + place_N)

    def _shares(self, keys_BNHd: Tensor, attention_BN: Tensor, order_BK: Tensor) -> Tensor:
        """The weight of each patch in each kept one's neighbourhood, `(B, K, N)`; zero outside."""
        unit_BNC = F.normalize(keys_BNHd.flatten(2).float(), dim=-1)
        cosine_BKN = take(unit_BNC, order_BK) @ unit_BNC.transpose(1, 2)
        cosine_BKN = cosine_BKN.scatter(2, order_BK.unsqueeze(2), -torch.inf)
        near_BKn = best(cosine_BKN, min(self.neighbours, cosine_BKN.shape[2] - 1))
        weight_BKn = attention_BN.unsqueeze(1).expand_as(cosine_BKN).gather(2, near_BKn)
        return torch.zeros_like(cosine_BKN).scatter(2, near_BKn, weight_BKn)


def _compact(
    tokens_BMC: Tensor, order_BK: Tensor, counts_B1: Tensor, patches: int, *, padded: bool
) -> CompressedTokens:
    """The extra token moved behind the last kept patch of its image, and where each patch went."""
    batch, most = tokens_BMC.shape[:2]
    place_M = torch.arange(most, device=tokens_BMC.device).expand(batch, -1)
    groups_BN = counts_B1.expand(batch, patches).scatter(1, order_BK, place_M[:, :-1].minimum(counts_B1))
    kept_BM = F.pad(order_BK, (0, 1), value=-1).masked_fill(place_M >= counts_B1, -1)
    if not padded:
        return CompressedTokens(tokens_BMC=tokens_BMC, kept_BM=kept_BM, groups_BN=groups_BN)
    mask_BM = place_M <= counts_B1
    source_BM = torch.where(place_M == counts_B1, most - 1, place_M)
    tokens_BMC = take(tokens_BMC, source_BM).masked_fill(~mask_BM.unsqueeze(-1), 0.0)
    return CompressedTokens(tokens_BMC=tokens_BMC, mask_BM=mask_BM, kept_BM=kept_BM, groups_BN=groups_BN)
