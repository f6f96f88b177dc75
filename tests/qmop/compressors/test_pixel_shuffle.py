from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qmop.compressors import build_projector
from qmop.compressors.pixel_shuffle import PixelShuffle, space_to_channels
from qmop.features import VisualFeatures
from qmop.tiny.assemble import tiny_model

MakeFeatures = Callable[..., VisualFeatures]


def shuffle(**options: Any) -> PixelShuffle:
    torch.manual_seed(3)
    return PixelShuffle(**{"width": 16, "grid": 6, "tokens": 9, "language_width": 20, **options})


def by_index(patches_NC: Tensor, grid: int, stride: int) -> Tensor:
    """One picture: every token's channels gathered patch by patch."""
    side, tokens = grid // stride, []
    for row in range(side):
        for column in range(side):
            inside = [
                patches_NC[(row * stride + down) * grid + column * stride + right]
                for down in range(stride)
                for right in range(stride)
            ]
            tokens.append(torch.cat(inside))
    return torch.stack(tokens)


@pytest.mark.parametrize("stride", [1, 2, 3, 6])
def test_cells_move_to_the_channels_in_raster_order(make_features: MakeFeatures, stride: int) -> None:
    patches = make_features(2).patches_BNC
    moved = space_to_channels(patches.unflatten(1, (6, 6)), stride)
    assert moved.shape == (2, 36 // stride**2, stride**2 * 16)
    for row in range(2):
        assert torch.equal(moved[row], by_index(patches[row], 6, stride))


@pytest.mark.parametrize(("tokens", "stride"), [(36, 1), (9, 2), (4, 3), (1, 6)])
def test_internvls_readout_norms_and_connects_each_cell(make_features: MakeFeatures, tokens: int, stride: int) -> None:
    method, features = shuffle(tokens=tokens).double(), make_features(2)
    features.patches_BNC = features.patches_BNC.double()
    norm, first, second = method.readout[0], method.readout[1], method.readout[3]
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    told = method(features).tokens_BMC
    for row in range(2):
        cells = by_index(features.patches_BNC[row], 6, stride)
        spread = (cells.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        normed = (cells - cells.mean(1, keepdim=True)) / spread * norm.weight + norm.bias
        hidden = F.gelu(normed @ first.weight.T + first.bias)
        torch.testing.assert_close(told[row], hidden @ second.weight.T + second.bias, rtol=0, atol=1e-12)


def test_the_linear_style_is_one_matrix(make_features: MakeFeatures) -> None:
    method, features = shuffle(style="linear"), make_features(2)
    ((name, weight),) = method.named_parameters()
    assert (name, weight.shape) == ("readout.0.weight", (20, 64))
    for row, tokens in enumerate(method(features).tokens_BMC):
        torch.testing.assert_close(tokens, by_index(features.patches_BNC[row], 6, 2) @ weight.T)


def test_a_patch_changes_its_own_token_and_no_other(make_features: MakeFeatures) -> None:
    method, features = shuffle(), make_features(1)
    before = method(features).tokens_BMC[0]
    features.patches_BNC[0, 3 * 6 + 4] += 1.0  # third row, fourth column: the sixth cell of nine
    assert (method(features).tokens_BMC[0] != before).any(1).nonzero().flatten().tolist() == [5]


def test_the_size_at_llava_7b() -> None:
    with torch.device("meta"):
        projector = build_projector("pixel_shuffle", tokens=144)
    assert sum(p.numel() for p in projector.parameters()) == 2 * 4096 + 2 * (4096 * 4096 + 4096)
    assert [tuple(p.shape) for p in build_projector("pixel_shuffle", grid=6, width=16, tokens=9).parameters()] == [
        (64,),
        (64,),
        (4096, 64),
        (4096,),
        (4096, 4096),
        (4096,),
    ]


def test_start_values_survive_the_construction_of_a_model() -> None:
    torch.manual_seed(0)
    plain: Any = tiny_model("pixel_shuffle", 16).model.multi_modal_projector.compressor
    for layer, bound in ((plain.readout[1], (9 * 128) ** -0.5), (plain.readout[3], 160**-0.5)):
        for values in (layer.weight, layer.bias):
            assert values.abs().max() <= bound
            assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
    linear: Any = tiny_model("pixel_shuffle", 16, style="linear").model.multi_modal_projector.compressor
    assert linear.readout[0].weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match="style is 'v1': choose one of internvl, linear"):
        shuffle(style="v1")
