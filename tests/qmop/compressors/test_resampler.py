from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qmop.compressors.resampler import Resampler, sincos_2d
from qmop.features import VisualFeatures

MakeFeatures = Callable[..., VisualFeatures]


def resampler(**options: object) -> Resampler:
    torch.manual_seed(4)
    return Resampler(**{"width": 16, "grid": 6, "tokens": 5, "heads": 4, **options})  # type: ignore[arg-type]


def shuffled(features: VisualFeatures) -> VisualFeatures:
    order = torch.randperm(features.patches_BNC.shape[1], generator=torch.Generator().manual_seed(9))
    return VisualFeatures(patches_BNC=features.patches_BNC[:, order], grid=features.grid)


def test_without_positions_the_order_of_patches_does_not_matter(make_features: MakeFeatures) -> None:
    method, features = resampler(positions=False), make_features(2)
    before, after = method(features).tokens_BMC, method(shuffled(features)).tokens_BMC
    torch.testing.assert_close(before, after, rtol=0, atol=1e-6)


def test_with_positions_it_does(make_features: MakeFeatures) -> None:
    method, features = resampler(norm="none"), make_features(2)
    with torch.no_grad():
        method.attention.key.weight.mul_(20)
        method.query_MC.mul_(20)
    before, after = method(features).tokens_BMC, method(shuffled(features)).tokens_BMC
    assert (before - after).abs().max() > 1e-2 * before.abs().max()


@pytest.mark.parametrize("tokens", [1, 5, 36])
def test_gives_as_many_tokens_as_queries(make_features: MakeFeatures, tokens: int) -> None:
    method = resampler(tokens=tokens)
    assert method.query_MC.shape == (tokens, 16)
    assert method(make_features(3)).tokens_BMC.shape == (3, tokens, 16)


@pytest.mark.parametrize("positions", [True, False])
def test_equals_softmax_of_scaled_products_head_by_head(make_features: MakeFeatures, *, positions: bool) -> None:
    method, features = resampler(positions=positions).double(), make_features(2)
    parts, patches = method.attention, features.patches_BNC.double()
    features.patches_BNC = patches
    keys = parts.key_norm(parts.key(patches + method.position_NC if positions else patches))
    values, queries = parts.value_norm(parts.value(patches)), parts.query_norm(method.query_MC)
    mixed = torch.empty(2, 5, 16, dtype=torch.float64)
    for head in range(4):
        part = slice(4 * head, 4 * head + 4)
        share = (queries[:, part] @ keys[..., part].transpose(1, 2) / 2.0).softmax(-1)
        mixed[..., part] = share @ values[..., part]
    torch.testing.assert_close(method(features).tokens_BMC, parts.output(mixed), rtol=0, atol=1e-10)


def test_identity_values_and_zero_keys_give_the_mean_of_all_patches(make_features: MakeFeatures) -> None:
    method, features = resampler(norm="qk", value_init="identity"), make_features(2)
    torch.nn.init.zeros_(method.attention.key.weight)
    mean = features.patches_BNC.mean(dim=1, keepdim=True).expand(-1, 5, -1)
    torch.testing.assert_close(method(features).tokens_BMC, mean, rtol=0, atol=1e-6)


def test_positions_tell_rows_and_columns_apart() -> None:
    table = sincos_2d(6, 16)
    assert table.shape == (36, 16)
    assert torch.cdist(table, table).fill_diagonal_(9).min() > 0.5
    rows, columns = table.view(6, 6, 16)[..., :8], table.view(6, 6, 16)[..., 8:]
    assert torch.equal(rows[2, 0], rows[2, 5])
    assert torch.equal(columns[0, 3], columns[4, 3])
    assert table[0].tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 4 + [1.0] * 4


def test_positions_are_not_part_of_a_checkpoint() -> None:
    assert "position_NC" not in resampler().state_dict()


def test_widths_and_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="heads is 5, which does not divide the width 16"):
        resampler(heads=5)
    with pytest.raises(ValueError, match="width is 18, but two-dimensional positions need a multiple of 4"):
        resampler(width=18, heads=2)


def test_another_budget_is_refused(make_features: MakeFeatures) -> None:
    with pytest.raises(ValueError, match="tokens is 9, but this resampler was built for 5"):
        resampler()(make_features(1), tokens=9)


def test_nested_queries_train_at_drawn_budgets_and_others_at_their_own(make_features: MakeFeatures) -> None:
    method, features = resampler(nested=True), make_features(1)
    assert method.training_budgets() == (2, 4, 5)
    assert [method(features, tokens=count).tokens_BMC.shape[1] for count in (2, 4, 5)] == [2, 4, 5]
    assert resampler().training_budgets() == (5,)
