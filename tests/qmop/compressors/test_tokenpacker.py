from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qmop.compressors import build_projector
from qmop.compressors.projector import projector_spec
from qmop.compressors.tokenpacker import RegionAttention, TokenPacker, coarse_map, regions
from qmop.features import VisualFeatures
from qmop.tiny.assemble import tiny_config, tiny_model

MakeFeatures = Callable[..., VisualFeatures]


def packer(stride: int = 2, *, grid: int = 12, **options: object) -> TokenPacker:
    torch.manual_seed(3)
    fields = {"width": 16, "grid": grid, "tokens": (grid // stride) ** 2, "heads": 4, **options}
    return TokenPacker(**fields)  # type: ignore[arg-type]


def sharpened(method: TokenPacker) -> TokenPacker:
    """Weights as a trained module may have them: every vector away from its start, attention far from uniform."""
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        method.attention.in_proj_weight.mul_(3)
    return method


def by_hand(method: TokenPacker, features: VisualFeatures, picture: int) -> Tensor:
    """One picture, region by region, with torch's own attention, masks of nothing and batches of one."""
    attention = nn.MultiheadAttention(method.width, method.attention.num_heads, dtype=torch.double)
    attention.load_state_dict(method.attention.state_dict())
    assert features.levels_BNF is not None
    patches, levels = features.patches_BNC[picture], features.levels_BNF[picture]
    stride, side, grid = method.grid // method.side, method.side, method.grid

    def path(part: nn.Module, states: Tensor) -> Tensor:
        inner = part.mlp
        hidden = F.gelu(states @ inner.linear_1.weight.T + inner.linear_1.bias)  # type: ignore[union-attr, operator]
        return part.norm(hidden @ inner.linear_2.weight.T + inner.linear_2.bias)  # type: ignore[union-attr, operator]

    rows = []
    for token in range(side * side):
        top, left = token // side * stride, token % side * stride
        inside = [(top + y) * grid + left + x for y in range(stride) for x in range(stride)]
        middle = range((stride - 1) // 2, stride // 2 + 1)
        centre = patches[[(top + y) * grid + left + x for y in middle for x in middle]].mean(0)
        query = F.layer_norm(
            method.query.weight @ centre, (method.width,), method.query_norm.weight, method.query_norm.bias, 1e-6
        )
        key, value = path(method.key, levels[inside]), path(method.value, levels[inside])
        rows.append(attention(query[None], key, value)[0][0])
    return torch.stack(rows)


@pytest.mark.parametrize("tokens", [576, 144, 64, 36, 16, 9, 4, 1])
@pytest.mark.parametrize(("language_width", "count"), [(4096, 36_722_688), (5120, 47_210_496)])
def test_it_has_as_many_parameters_as_the_published_module(tokens: int, language_width: int, count: int) -> None:
    with torch.device("meta"):
        projector = build_projector("tokenpacker", tokens=tokens, language_width=language_width)
    assert sum(parameter.numel() for parameter in projector.parameters()) == count


def test_queries_are_interpolated_without_antialiasing() -> None:
    maps = torch.randint(-8, 9, (2, 12, 12, 5), generator=torch.Generator().manual_seed(0)).float()
    cells = maps.permute(0, 3, 1, 2)

    def coarse(stride: int) -> Tensor:
        return coarse_map(maps.flatten(1, 2), 12, 12 // stride).unflatten(1, (12 // stride, -1))

    assert torch.equal(coarse(1), maps)
    assert torch.equal(coarse(2), F.avg_pool2d(cells, 2).permute(0, 2, 3, 1))
    assert torch.equal(coarse(3), maps[:, 1::3, 1::3])
    central = (maps[:, 1::4, 1::4] + maps[:, 1::4, 2::4] + maps[:, 2::4, 1::4] + maps[:, 2::4, 2::4]) / 4
    assert torch.equal(coarse(4), central)


def test_queries_are_interpolated_in_single_precision() -> None:
    patches = torch.randn(1, 144, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    wanted = F.avg_pool2d(patches.float().unflatten(1, (12, 12)).permute(0, 3, 1, 2), 2)
    coarse = coarse_map(patches, 12, 6)
    assert coarse.dtype == torch.bfloat16
    assert torch.equal(coarse, wanted.permute(0, 2, 3, 1).flatten(1, 2).bfloat16())


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6, 12])
def test_equals_a_loop_over_regions_with_torchs_attention(make_features: MakeFeatures, stride: int) -> None:
    method, features = sharpened(packer(stride)).double(), make_features(2, grid=12)
    assert features.levels_BNF is not None
    features.patches_BNC, features.levels_BNF = features.patches_BNC.double(), features.levels_BNF.double()
    features.patches_BNC = features.patches_BNC.mul(8).round().div(8)  # their means are exact in single precision
    fast = method(features).tokens_BMC
    assert fast.shape == (2, (12 // stride) ** 2, 16)
    for picture in range(2):
        torch.testing.assert_close(fast[picture], by_hand(method, features, picture), rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("patch", [0, 17, 77, 143])
def test_a_fine_patch_changes_the_token_above_it_and_no_other(
    make_features: MakeFeatures, stride: int, patch: int
) -> None:
    method, features = packer(stride), make_features(1, grid=12)
    assert features.levels_BNF is not None
    before = method(features).tokens_BMC[0]
    features.levels_BNF[0, patch, 0] += 1.0
    after = method(features).tokens_BMC[0]
    changed = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert changed == [patch // 12 // stride * (12 // stride) + patch % 12 // stride]


@pytest.mark.parametrize(("stride", "patch", "changed"), [(2, 77, [20]), (3, 13, [0]), (3, 14, []), (4, 13, [0])])
def test_a_patch_of_the_selected_layer_acts_through_the_query_alone(
    make_features: MakeFeatures, stride: int, patch: int, changed: list[int]
) -> None:
    method, features = sharpened(packer(stride)), make_features(1, grid=12)
    before = method(features).tokens_BMC[0]
    features.patches_BNC[0, patch] += 1.0
    after = method(features).tokens_BMC[0]
    assert (before != after).any(dim=1).nonzero().flatten().tolist() == changed


def test_equal_values_give_the_value_whatever_the_query(make_features: MakeFeatures) -> None:
    method, features = sharpened(packer(3)), make_features(1, grid=12)
    assert features.levels_BNF is not None
    features.levels_BNF = features.levels_BNF[:, :1].expand(-1, 144, -1)
    tokens = method(features).tokens_BMC[0]
    torch.testing.assert_close(tokens, tokens[:1].expand(16, -1), rtol=0, atol=1e-5)


def test_regions_are_in_raster_order() -> None:
    index = torch.arange(36).view(1, 36, 1)
    assert regions(index, 3)[0, 1, 2].flatten().tolist() == [16, 17, 22, 23]
    assert regions(index, 2)[0, 1, 0].flatten().tolist() == [18, 19, 20, 24, 25, 26, 30, 31, 32]


def test_batch_equals_single_pictures(make_features: MakeFeatures) -> None:
    method, features = sharpened(packer()), make_features(3, grid=12)
    together = method(features).tokens_BMC
    for row in range(3):
        alone = method(features.rows(torch.tensor([row]))).tokens_BMC
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_runs_in_half_precision(make_features: MakeFeatures) -> None:
    method, features = packer(), make_features(2, grid=12)
    exact = method(features).tokens_BMC
    assert features.levels_BNF is not None
    features.patches_BNC, features.levels_BNF = features.patches_BNC.bfloat16(), features.levels_BNF.bfloat16()
    tokens = method.bfloat16()(features).tokens_BMC
    assert tokens.dtype == torch.bfloat16
    torch.testing.assert_close(tokens.float(), exact, rtol=0, atol=0.02 * exact.abs().max().item())


def test_gradients_reach_every_parameter(make_features: MakeFeatures) -> None:
    method, features = sharpened(packer()), make_features(2, grid=12)
    weight = torch.randn(36, 16, generator=torch.Generator().manual_seed(0))
    (method(features).tokens_BMC * weight).sum().backward()
    largest = {
        name: value.grad.abs().max().item() for name, value in method.named_parameters() if value.grad is not None
    }
    assert largest.keys() == dict(method.named_parameters()).keys()
    # What is added to every key of a region alike cannot change a softmax.
    assert largest.pop("key.norm.bias") < 1e-2
    assert min(largest.values()) > 1
    bias = method.attention.in_proj_bias.grad
    assert bias is not None
    query, key, value = bias.abs().view(3, 16).amax(dim=1).tolist()
    assert key < 1e-2
    assert min(query, value) > 1


def starts_as_published(method: TokenPacker) -> None:
    """Normal with 0.02 and no bias; attention's way in Xavier-uniform over its three parts together."""
    for name, linear in method.named_modules():
        if isinstance(linear, nn.Linear):
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert linear.bias is None or not linear.bias.any(), name
        if isinstance(linear, nn.LayerNorm):
            assert linear.eps == 1e-6
            assert linear.weight.unique().tolist() == [1], name
            assert not linear.bias.any(), name
    bound = math.sqrt(6 / (4 * method.width))
    assert method.attention.in_proj_weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert method.attention.in_proj_weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert not method.attention.in_proj_bias.any()


def test_start_values_are_the_published_ones_with_and_without_a_model_around() -> None:
    starts_as_published(packer(width=64, heads=8))
    inside = tiny_model("tokenpacker", 16).model.multi_modal_projector.compressor
    assert isinstance(inside, TokenPacker)
    starts_as_published(inside)


def test_a_tiny_model_reads_its_levels() -> None:
    config = tiny_config("tokenpacker", 36)
    config.feature_levels = [2, 5]
    assert projector_spec(config).build().compressor.key.mlp.linear_1.in_features == 2 * 128  # type: ignore[union-attr]
    model = tiny_model("tokenpacker", 36)
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert [tuple(tokens.shape) for tokens in model.get_image_features(pixels).pooler_output] == [(36, 160)] * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tokens": 20}, "tokens is 20, but a 12 x 12 grid can be cut evenly only into 144, 36, 16, 9, 4, 1 tokens"),
        ({"heads": 3}, "heads is 3, which does not divide the width 16: choose a divisor"),
        ({"heads": 0}, "heads is 0, which does not divide the width 16"),
        ({"levels": 0}, "levels is 0, but keys and values need a layer to come from"),
    ],
)
def test_fields_that_do_not_fit_are_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        packer(**options)


def test_features_that_do_not_fit_are_refused(make_features: MakeFeatures) -> None:
    with pytest.raises(ValueError, match=r"levels_BNF is missing.*declare it"):
        packer()(VisualFeatures(patches_BNC=torch.zeros(1, 144, 16)))
    with pytest.raises(ValueError, match=r"levels_BNF is 64 wide.*built for 3 levels of 16: name 3 hidden states"):
        packer(levels=3)(make_features(1, grid=12))
    with pytest.raises(ValueError, match=r"features have 36 patches.*built for a 12 x 12 grid"):
        packer()(make_features(1, grid=6))
    with pytest.raises(ValueError, match="tokens is 16, but this tokenpacker was built for 36"):
        packer()(make_features(1, grid=12), tokens=16)


def test_attention_has_torchs_names() -> None:
    assert RegionAttention(16, 4).state_dict().keys() == nn.MultiheadAttention(16, 4).state_dict().keys()
