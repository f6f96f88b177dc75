"""VisionZip: patches that the class token looks at, and the others merged around anchors (arXiv 2412.04467)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from qmop.compressors.base import Compressor, Declaration
from qmop.compressors.registry import register
from qmop.compressors.selection import asked_budget, best, full_precision, raster, take
from qmop.compressors.values import whole
from qmop.features import CompressedTokens, Query, VisualFeatures


def default_contextual(tokens: int) -> int:
    """5 of every 32 tokens, rounded to the nearest: the published 10 of 64, 20 of 128 and 30 of 192."""
    return (5 * tokens + 16) // 32


def merge(states_BRC: Tensor, metric_BRK: Tensor, anchors: int) -> tuple[Tensor, Tensor]:
    """Merge R tokens around anchors at a uniform stride: an anchor plus the mean of the others nearest to it.

    Args:
        states_BRC: what is merged, single precision.
        metric_BRK: what cosine similarity is taken of, single precision.
        anchors: how many, from 1 to R; see `anchor_places`.

    Returns:
        Merged tokens `(B, anchors, C)`, and for each token the anchor that it went to, `(B, R)`; an anchor goes to
        itself, a token between equally near anchors to the first.
    """
    place_R = torch.arange(states_BRC.shape[1], device=states_BRC.device)
    places = anchor_places(states_BRC.shape[1], anchors)
    unit_BRK = F.normalize(metric_BRK, dim=-1)
    nearest_BR = (unit_BRK @ unit_BRK[:, places].transpose(1, 2)).argmax(dim=2)
    is_anchor_R = (place_R % places.step == 0) & (place_R < places.stop)
    group_BR = torch.where(is_anchor_R, place_R // places.step, nearest_BR)
    joins_BRA = (group_BR.unsqueeze(-1) == place_R[:anchors]) & ~is_anchor_R.unsqueeze(-1)
    share_BRA = joins_BRA / joins_BRA.sum(1, keepdim=True).clamp(min=1)
    return states_BRC[:, places] + share_BRA.transpose(1, 2) @ states_BRC, group_BR


def anchor_places(length: int, anchors: int) -> slice:
    """0, s, 2 s, ...: as many as there are anchors, with s the whole quotient of the length and their number."""
    stride = length // anchors
    return slice(0, anchors * stride, stride)


def ungrouped(features: VisualFeatures) -> Tensor:
    """-1 for every patch, `(B, N)`."""
    batch, patches, _ = features.patches_BNC.shape
    return torch.full((batch, patches), -1, device=features.patches_BNC.device)


Part = tuple[Tensor, Tensor, Tensor]
"""Tokens, the patch of each (-1 for none), and the token of each patch (-1 for none)."""


@register
class VisionZip(Compressor):
    """Dominant tokens as they are, then contextual tokens merged from all other patches; M together.

    Dominant are the class token itself and the patches with most of its attention, in raster order with the class
    token first; attention is the mean over heads, which chooses what the published sum does. The others are merged,
    see `merge`, by the mean over heads of their keys. Attention and keys are those of the block that made the patches.

    `kept_BM` is -1 for the class token; a merged token has the index of its anchor. `groups_BN` names the token that
    each patch became or was merged into.

    Args:
        width: C.
        grid: side of the patch grid.
        tokens: M, dominant and contextual; any budget from 1 to N may be asked for.
        contextual: how many tokens are merged ones; 5 of every 32, the published share, when absent.
        class_token: count the class token among the dominant ones; false for towers without one.

    Raises:
        ValueError: if no token would be left for the dominant ones.
    """

    declaration = Declaration(
        name="visionzip",
        source="VisionZip, arXiv 2412.04467",
        reads=frozenset({"cls_attention", "keys", "class_token"}),
        elastic=True,
        attention_layer=-2,
    )

    def __init__(
        self, *, width: int, grid: int, tokens: int, contextual: int | None = None, class_token: bool = True
    ) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        self.contextual, self.class_token = contextual, class_token
        self.anchors(tokens)
        if not class_token:
            own = type(self).declaration
            self.declaration = dataclasses.replace(own, reads=own.reads - {"class_token"})

    def anchors(self, tokens: int) -> int:
        """How many of a budget are contextual tokens.

        Raises:
            ValueError: if none of the budget would be left for dominant ones, or the number is not whole.
        """
        if self.contextual is None:
            return default_contextual(tokens)
        why = f"of {tokens} tokens at least one is dominant (left out, {default_contextual(tokens)} are contextual)"
        return whole("contextual", self.contextual, why, least=0, most=tokens - 1)

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """Dominant tokens, then contextual ones, `(B, M, C)`, with their patches and the groups of all patches.

        Raises:
            ValueError: if the budget exceeds the patches or leaves none dominant, or a declared feature is missing.
        """
        del query
        count = asked_budget(self, tokens)
        anchors = self.anchors(count)
        attention_BN = features.need("cls_attention_BN").float()
        order_BN = best(attention_BN, attention_BN.shape[1])
        patches = count - anchors - int(self.class_token)
        whole = self._dominant(features, raster(order_BN[:, :patches]))
        merged = self._contextual(features, raster(order_BN[:, patches:]), anchors)
        tokens_BMC, kept_BM = (torch.cat(both, dim=1) for both in zip(whole[:2], merged[:2], strict=True))
        groups_BN = torch.where(merged[2] < 0, whole[2], merged[2] + (count - anchors))
        return CompressedTokens(tokens_BMC=tokens_BMC, kept_BM=kept_BM, groups_BN=groups_BN)

    def _dominant(self, features: VisualFeatures, kept_BK: Tensor) -> Part:
        """The class token, if it counts, and the kept patches."""
        states_BKC, places = take(features.patches_BNC, kept_BK), torch.arange(kept_BK.shape[1], device=kept_BK.device)
        groups_BN = ungrouped(features).scatter(1, kept_BK, places.expand_as(kept_BK) + int(self.class_token))
        if not self.class_token:
            return states_BKC, kept_BK, groups_BN
        class_B1C = features.need("class_token_BC").unsqueeze(1)
        return torch.cat([class_B1C, states_BKC], dim=1), F.pad(kept_BK, (1, 0), value=-1), groups_BN

    def _contextual(self, features: VisualFeatures, rest_BR: Tensor, anchors: int) -> Part:
        """The other patches, merged."""
        if not anchors:
            return features.patches_BNC[:, :0], rest_BR[:, :0], ungrouped(features)
        metric_BNd = features.need("keys_BNHd").float().mean(2)
        with full_precision(metric_BNd):
            merged, group_BR = merge(take(features.patches_BNC, rest_BR).float(), take(metric_BNd, rest_BR), anchors)
        groups_BN = ungrouped(features).scatter(1, rest_BR, group_BR)
        return merged.to(features.patches_BNC.dtype), rest_BR[:, anchor_places(rest_BR.shape[1], anchors)], groups_BN
