from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from qmop.mac_counter import macs_of


def test_every_kind_of_product_is_counted() -> None:
    left, right = torch.ones(2, 3, 8, 4), torch.ones(2, 3, 5, 4)
    assert macs_of(lambda: F.scaled_dot_product_attention(left, right, right)) == 2 * (2 * 3 * 8 * 5 * 4)
    assert macs_of(lambda: F.linear(left, torch.ones(7, 4), torch.ones(7))) == 48 * 4 * 7
    assert macs_of(lambda: torch.einsum("abc,abd->cd", left[0], left[0])) == 3 * 8 * 4 * 4
    assert macs_of(lambda: F.conv2d(torch.ones(1, 6, 5, 5), torch.ones(6, 1, 3, 3), groups=6)) == 6 * 9 * 9
    assert macs_of(lambda: torch.cdist(left[0, 0], right[0, 0])) == 8 * 5 * 4
    assert macs_of(lambda: left * left[:1]) == left.numel()
    assert macs_of(lambda: left.clone().mul_(left)) == left.numel()
    assert macs_of(lambda: (left * 3 / torch.tensor(2.0) + 1).softmax(-1)) == 0
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    row = torch.ones(1, 5, 8)
    with torch.inference_mode():  # torch has a fast path here that hides everything
        assert macs_of(lambda: attention(row, row, row, need_weights=False)) == 4 * 5 * 64 + 2 * 25 * 8


def test_counting_leaves_fast_attention_as_it_was() -> None:
    assert torch.backends.mha.get_fastpath_enabled()
    macs_of(lambda: None)
    assert torch.backends.mha.get_fastpath_enabled()
