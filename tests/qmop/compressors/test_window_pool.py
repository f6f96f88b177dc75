from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from qmop.compressors.window_pool import WindowPool
from qmop.features import VisualFeatures

MakeFeatures = Callable[..., VisualFeatures]


def pool(**options: object) -> WindowPool:
    torch.manual_seed(3)
    return WindowPool(**{"width": 16, "grid": 6, "tokens": 9, "heads": 4, **options})  # type: ignore[arg-type]


def by_hand(method: WindowPool, patches_NC: torch.Tensor) -> torch.Tensor:
    """One picture, window by window and head by head."""
    parts, stride, side = method.attention, method.stride, method.grid // method.stride
    rows = []
    for token in range(side * side):
        top, left = token // side * stride, token % side * stride
        inside = [(top + y) * method.grid + left + x for y in range(stride) for x in range(stride)]
        keys = parts.key_norm(parts.key(patches_NC[inside]))
        values = parts.value_norm(parts.value(patches_NC[inside]))
        query = parts.query_norm(method.query_MC[token])
        mixed = []
        for head in range(parts.heads):
            part = slice(head * parts.head_width, (head + 1) * parts.head_width)
            share = (keys[:, part] @ query[part] / parts.head_width**0.5).softmax(0)
            mixed.append(share @ values[:, part])
        rows.append(parts.output(torch.cat(mixed)))
    return torch.stack(rows)


@pytest.mark.parametrize("patch", [0, 7, 14, 20, 35])
def test_a_patch_changes_its_own_window_and_no_other(make_features: MakeFeatures, patch: int) -> None:
    method, features = pool(), make_features(1)
    before = method(features).tokens_BMC[0]
    features.patches_BNC[0, patch, 0] += 1.0
    after = method(features).tokens_BMC[0]
    changed = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert changed == [patch // 6 // 2 * 3 + patch % 6 // 2]


@pytest.mark.parametrize("norm", ["qkv", "qk", "none"])
@pytest.mark.parametrize("tokens", [36, 9, 4, 1])
def test_equals_a_loop_over_windows(make_features: MakeFeatures, norm: str, tokens: int) -> None:
    method, features = pool(norm=norm, tokens=tokens).double(), make_features(2)
    with torch.no_grad():
        for linear in (method.attention.key, method.attention.value):
            linear.weight.mul_(20)  # far from uniform attention
    features.patches_BNC = features.patches_BNC.double()
    fast = method(features).tokens_BMC
    for row in range(2):
        torch.testing.assert_close(fast[row], by_hand(method, features.patches_BNC[row]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["qk", "none"])
def test_identity_values_and_zero_keys_give_the_window_mean(make_features: MakeFeatures, norm: str) -> None:
    method, features = pool(norm=norm, value_init="identity"), make_features(2)
    torch.nn.init.zeros_(method.attention.key.weight)
    maps = features.patches_BNC.transpose(1, 2).unflatten(2, (6, 6))
    means = F.avg_pool2d(maps, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(method(features).tokens_BMC, means, rtol=0, atol=1e-6)


def test_queries_differ_by_place(make_features: MakeFeatures) -> None:
    method, features = pool(norm="none"), make_features(1)
    before = method(features).tokens_BMC[0]
    with torch.no_grad():
        method.query_MC[5] += 1.0
    after = method(features).tokens_BMC[0]
    assert (before != after).any(dim=1).nonzero().flatten().tolist() == [5]


def test_batch_equals_single_pictures(make_features: MakeFeatures) -> None:
    method, features = pool(), make_features(3)
    together = method(features).tokens_BMC
    for row in range(3):
        alone = method(features.rows(torch.tensor([row]))).tokens_BMC
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-6)


def test_a_grid_that_does_not_divide_names_the_counts_that_fit() -> None:
    with pytest.raises(ValueError, match=r"tokens is 20, but a 12 x 12 grid .* only into 144, 36, 16, 9, 4, 1 tokens"):
        pool(grid=12, tokens=20)


def test_another_budget_is_refused(make_features: MakeFeatures) -> None:
    with pytest.raises(ValueError, match="tokens is 4, but this window_pool was built for 9"):
        pool()(make_features(1), tokens=4)


def test_an_elastic_query_map_trains_at_drawn_budgets_and_others_at_their_own(make_features: MakeFeatures) -> None:
    method, features = pool(elastic=True, tokens=36), make_features(1)
    assert method.training_budgets() == (36, 9, 4)
    assert [method(features, tokens=count).tokens_BMC.shape[1] for count in (36, 9, 4)] == [36, 9, 4]
    assert pool(tokens=36).training_budgets() == (36,)
