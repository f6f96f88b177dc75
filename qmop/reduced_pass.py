"""One pass through a language model in which tokens are dropped: what stays, in which order, and masks over it.

Shape legend beside that of `features.py`: R prompt rows, L columns of this pass, P columns of earlier passes,
K columns that go on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qmop.placeholders import IGNORED


@dataclass(frozen=True)
class Kept:
    """What earlier passes left in the caches of the later layers.

    Attributes:
        columns: how many columns the earlier layers hold for these.
        length: how many of them the later layers hold.
        mask_RP: `(R, length)`, true where a column is real; all are when absent.
    """

    columns: int = 0
    length: int = 0
    mask_RP: Tensor | None = None


@dataclass
class Once:
    """Carries the choice of the first pass of a generation without caches to the passes after it."""

    keep_RL: Tensor | None = None

    def over(self, visual_RL: Tensor) -> Tensor | None:
        """The choice over rows that have grown since: what is new stays."""
        if self.keep_RL is None:
            return None
        return F.pad(self.keep_RL, (0, visual_RL.shape[1] - self.keep_RL.shape[1]), value=True)


@dataclass
class Pass:
    """One pass through a reduced language model.

    Attributes:
        visual_RL: true at visual tokens; absent where there are none to drop.
        labels_RL: targets, which tell the prompt from its answer.
        keep_RL: what stays; chosen in the pass unless given.
        order_RK: the columns that go on, once something was dropped.
        real_RK: true where such a column is real.
    """

    visual_RL: Tensor | None = None
    labels_RL: Tensor | None = None
    keep_RL: Tensor | None = None
    order_RK: Tensor | None = None
    real_RK: Tensor | None = None
    past: int = 0
    later: dict[str, Any] = field(default_factory=dict)

    def fit_labels(self, labels_RL: Tensor) -> Tensor:
        """Labels of the columns that went on, `(R, K)`."""
        if self.order_RK is None or self.real_RK is None:
            return labels_RL
        order = self.order_RK.to(labels_RL.device)
        return labels_RL.gather(1, order).masked_fill(~self.real_RK.to(labels_RL.device), IGNORED)


def taken(states_RLD: Tensor, order_RK: Tensor | None) -> Tensor:
    """The columns that go on, `(R, K, D)`."""
    assert order_RK is not None, "rows are packed before they are taken"
    order = order_RK.to(states_RLD.device)
    return states_RLD.gather(1, order.unsqueeze(-1).expand(-1, -1, states_RLD.shape[-1]))


def packed(step: Pass, now_RL: Tensor | None) -> Tensor | None:
    """Order the columns that go on to the right of each row.

    Args:
        step: what stays; its `order_RK` and `real_RK` are set.
        now_RL: true where a column is real; all are when absent.

    Returns:
        The mask of the packed rows, `(R, K)`, or None if all of them are real.
    """
    assert step.keep_RL is not None, "something was chosen"
    real_RL = step.keep_RL if now_RL is None else step.keep_RL.to(now_RL.device) & now_RL
    counts = real_RL.sum(dim=1)
    longest, shortest = torch.stack([counts.max(), counts.min()]).tolist()
    step.order_RK = real_RL.int().argsort(dim=1, stable=True)[:, real_RL.shape[1] - longest :]
    step.real_RK = real_RL.gather(1, step.order_RK)
    return None if longest == shortest else step.real_RK


def mask_before(kept: Kept, seen: Tensor | None, past: int, rows: int, device: torch.device) -> Tensor | None:
    """The mask over what the later layers' caches hold, `(R, P)`, or None if all is real."""
    old = kept.mask_RP
    if old is not None and len(old) != rows:  # the cache was repeated over the batch since
        old = old.repeat_interleave(rows // len(old), dim=0)
    since = None if seen is None else seen[:, kept.columns : past]
    return joined(old, since, (kept.length, past - kept.columns), rows, device)


def joined(
    left: Tensor | None, right: Tensor | None, lengths: tuple[int, int], rows: int, device: torch.device
) -> Tensor | None:
    """Two masks side by side, `(R, sum of lengths)`, where an absent one is all true; absent if both are."""
    if left is None and right is None:
        return None
    full = (torch.ones(rows, length, dtype=torch.bool, device=device) for length in lengths)
    parts = zip((left, right), full, strict=True)
    return torch.cat([ones if part is None else part.to(device) for part, ones in parts], dim=1)
