"""How many scores stand out: the Local Outlier Factor of single numbers, batched.

LOF (Breunig et al., 2000) compares how densely a point's neighbours lie with how densely it lies itself. On a line
the k nearest others of a point are among the k before and the k after it, so no N x N distances are needed.

Letters here: K neighbours at most; B and N as in `qmop.features`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Tail = Literal["upper", "both"]

THRESHOLD = 1.5
"""A point with a larger factor is an outlier, as with scikit-learn's `contamination="auto"`."""

SMOOTHING = 1e-10
"""Added to mean distances, so that more than k equal values still have a density; scikit-learn's constant."""


def count_outliers(
    values_BN: Tensor, neighbours: int, *, tail: Tail = "upper", mask_BN: Tensor | None = None
) -> Tensor:
    """How many values of each row are outliers, int64 `(B,)`.

    Args:
        values_BN: scores.
        neighbours: k of the factor.
        tail: `upper` counts outliers above the median of the row's real values (the lower of the two middle ones
            where their number is even), `both` all of them.
        mask_BN: true where a value is real.
    """
    outlier_BN = local_outlier_factor(values_BN, neighbours, mask_BN) > THRESHOLD
    if tail == "upper":
        real_BN = values_BN if mask_BN is None else values_BN.masked_fill(~mask_BN, torch.nan)
        outlier_BN = outlier_BN & (values_BN > real_BN.nanmedian(dim=1, keepdim=True).values)
    return outlier_BN.sum(dim=1)


def local_outlier_factor(values_BN: Tensor, neighbours: int, mask_BN: Tensor | None = None) -> Tensor:
    """The factor of each value among the real values of its row, `(B, N)`; around 1 inside a cluster, more outside.

    Equal to the negated `negative_outlier_factor_` of scikit-learn's `LocalOutlierFactor`, duplicates included.
    Where two different values are exactly as far from a third and only one can be the last neighbour, ours is the
    lower one and scikit-learn's either.

    Args:
        values_BN: finite numbers; computed in their own precision, at least single.
        neighbours: k; lowered to the number of other values where there are fewer.
        mask_BN: true where a value is real; the factor of others, and that of a value without others, is 1.
    """
    sorted_BN, order_BN, real_B = _sort(values_BN, mask_BN)
    k_B11 = (real_B - 1).clamp(0, neighbours)[:, None, None]
    distance_BNK, member_BNK = _nearest(sorted_BN, real_B, max(1, min(neighbours, values_BN.shape[1] - 1)))
    near_BNK = torch.arange(distance_BNK.shape[-1], device=values_BN.device) < k_B11
    farthest_BN = distance_BNK.masked_fill(~near_BNK, 0.0).amax(dim=-1)
    reach_BNK = torch.maximum(_at(farthest_BN, member_BNK), distance_BNK)
    density_BN = 1 / (_mean(reach_BNK, near_BNK, k_B11) + SMOOTHING)
    factor_BN = _mean(_at(density_BN, member_BNK), near_BNK, k_B11) / density_BN
    place_N = torch.arange(values_BN.shape[1], device=values_BN.device)
    known_BN = (place_N < real_B.unsqueeze(1)) & (real_B > 1).unsqueeze(1)
    return torch.empty_like(factor_BN).scatter_(1, order_BN, factor_BN.where(known_BN, 1.0))


def _sort(values_BN: Tensor, mask_BN: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Real values upwards, others zero behind them; the places that they come from; how many are real."""
    values_BN = values_BN if values_BN.dtype == torch.float64 else values_BN.float()
    if mask_BN is None:
        mask_BN = torch.ones_like(values_BN, dtype=torch.bool)
    sorted_BN, order_BN = values_BN.masked_fill(~mask_BN, torch.inf).sort(dim=1, stable=True)
    return sorted_BN.masked_fill(~mask_BN.gather(1, order_BN), 0.0), order_BN, mask_BN.sum(dim=1)


def _nearest(sorted_BN: Tensor, real_B: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Distances to the `most` nearest others, rising, and their places; infinite where there are not as many."""
    steps = torch.arange(1, most + 1, device=sorted_BN.device)
    place_N1 = torch.arange(sorted_BN.shape[1], device=sorted_BN.device).unsqueeze(-1)
    beside = (place_N1 + torch.cat([-steps, steps])).expand(len(sorted_BN), -1, -1)
    distance = (_at(sorted_BN, beside) - sorted_BN.unsqueeze(-1)).abs()
    outside = (beside < 0) | (beside >= real_B[:, None, None])
    distance, order = distance.masked_fill(outside, torch.inf).sort(dim=-1, stable=True)
    return distance[..., :most], beside.gather(2, order[..., :most])


def _at(values_BN: Tensor, index_BNK: Tensor) -> Tensor:
    """Values of each row at indices of the same row; indices outside are moved to its ends."""
    inside = index_BNK.clamp(0, values_BN.shape[1] - 1)
    return values_BN.gather(1, inside.flatten(1)).view_as(inside)


def _mean(values_BNK: Tensor, near_BNK: Tensor, k_B11: Tensor) -> Tensor:
    return values_BNK.masked_fill(~near_BNK, 0.0).sum(dim=-1) / k_B11.squeeze(-1).clamp(min=1)
