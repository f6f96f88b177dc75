from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qmop.compressors import build_projector
from qmop.compressors.ldp import LDP, InvertedResidual, LDPv2
from qmop.features import VisualFeatures
from qmop.tiny.assemble import tiny_model

MakeFeatures = Callable[..., VisualFeatures]


def depthwise_by_hand(convolution: nn.Conv2d, map_HWC: Tensor, stride: int = 1) -> Tensor:
    """3 x 3 over each channel by itself, place by place, with zeros outside."""
    grid, _, width = map_HWC.shape
    side = -(-grid // stride)
    result = map_HWC.new_zeros(side, side, width)
    for row in range(side):
        for column in range(side):
            for down in range(3):
                for right in range(3):
                    y, x = row * stride + down - 1, column * stride + right - 1
                    if 0 <= y < grid and 0 <= x < grid:
                        result[row, column] += map_HWC[y, x] * convolution.weight[:, 0, down, right]
    return result if convolution.bias is None else result + convolution.bias


def normed(norm: nn.LayerNorm, states: Tensor) -> Tensor:
    centred = states - states.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def block_by_hand(block: InvertedResidual, map_HWC: Tensor, stride: int) -> Tensor:
    hidden = normed(block.depthwise_norm, depthwise_by_hand(block.depthwise, map_HWC, stride))
    hidden = hidden * (hidden + 3).clamp(0, 6) / 6
    gate = block.excite.squeeze.weight @ hidden.mean((0, 1)) + block.excite.squeeze.bias
    gate = block.excite.excite.weight @ gate.clamp(min=0) + block.excite.excite.bias
    hidden = hidden * ((gate + 3).clamp(0, 6) / 6)
    hidden = normed(block.pointwise_norm, hidden @ block.pointwise.weight.T)
    return hidden + map_HWC if stride == 1 else hidden


def scrambled(method: nn.Module) -> Any:
    with torch.no_grad():
        for value in method.parameters():
            value.copy_(torch.randn_like(value) * 0.5)
    return method.double()


@pytest.mark.parametrize("tokens", [36, 9, 4, 1])
def test_v2_pools_and_then_adds_a_depthwise_convolution(make_features: MakeFeatures, tokens: int) -> None:
    torch.manual_seed(1)
    method, features = scrambled(LDPv2(width=16, grid=6, tokens=tokens)), make_features(2)
    features.patches_BNC = features.patches_BNC.double()
    side = round(tokens**0.5)
    for row, tokens_MC in enumerate(method(features).tokens_BMC):
        windows = features.patches_BNC[row].view(side, 6 // side, side, 6 // side, 16)
        pooled = windows.permute(0, 2, 1, 3, 4).reshape(side, side, -1, 16).mean(2)
        expected = depthwise_by_hand(method.position, pooled) + pooled
        torch.testing.assert_close(tokens_MC, expected.view(-1, 16), rtol=0, atol=1e-12)


def test_v2_without_its_kernel_is_average_pooling_of_connected_patches(make_features: MakeFeatures) -> None:
    projector, features = build_projector("ldp_v2", grid=6, width=16, tokens=9, language_width=20), make_features(2)
    position: Any = projector.compressor.position
    nn.init.zeros_(position.weight)
    nn.init.zeros_(position.bias)
    connected = projector.connector(features.patches_BNC).transpose(1, 2).unflatten(2, (6, 6))
    expected = nn.functional.avg_pool2d(connected, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(projector(features).tokens_BMC, expected)


def test_v2_costs_the_connector_over_every_patch() -> None:
    with torch.device("meta"):
        projector = build_projector("ldp_v2", tokens=144)
        features = VisualFeatures(patches_BNC=torch.empty(1, 576, 1024), grid=(24, 24))
        with FlopCounterMode(display=False) as counter:
            projector(features)
    multiplications = counter.get_total_flops() // 2
    assert multiplications == 576 * (1024 * 4096 + 4096 * 4096) + 144 * 4096 * 9
    assert round(multiplications / 1e9, 2) == 12.08
    assert sum(p.numel() for p in projector.compressor.parameters()) == 4096 * 9 + 4096


@pytest.mark.parametrize(("tokens", "stride"), [(36, 1), (9, 2), (4, 3), (1, 6)])
def test_v1_equals_its_blocks_place_by_place(make_features: MakeFeatures, tokens: int, stride: int) -> None:
    torch.manual_seed(2)
    method, features = scrambled(LDP(width=16, grid=6, tokens=tokens)), make_features(2)
    features.patches_BNC = features.patches_BNC.double()
    first, second = method.blocks
    for row, tokens_MC in enumerate(method(features).tokens_BMC):
        expected = block_by_hand(first, features.patches_BNC[row].view(6, 6, 16), 1)
        expected = block_by_hand(second, expected, stride)
        torch.testing.assert_close(tokens_MC, expected.view(-1, 16), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("width", "squeezed"), [(4096, 1024), (2560, 640), (160, 40), (44, 16), (16, 8), (76, 24), (240, 64)]
)
def test_v1_squeezes_to_a_quarter_in_whole_eights(width: int, squeezed: int) -> None:
    with torch.device("meta"):
        assert InvertedResidual(width, 1).excite.squeeze.out_features == squeezed


@pytest.mark.parametrize("name", ["ldp", "ldp_v2"])
def test_start_values_survive_the_construction_of_a_model(name: str) -> None:
    torch.manual_seed(0)
    compressor: Any = tiny_model(name, 16).model.multi_modal_projector.compressor
    kernel = compressor.position if name == "ldp_v2" else compressor.blocks[1].depthwise
    assert kernel.weight.shape == (160, 1, 3, 3)
    assert 1 / 4 < kernel.weight.abs().max() <= 1 / 3
    assert kernel.weight.std().item() == pytest.approx(3**-1.5, rel=0.1)
    if name == "ldp_v2":
        assert kernel.bias.std().item() == pytest.approx(3**-1.5, rel=0.2)
