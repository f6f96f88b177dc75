from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qmop.compressors import build_projector
from qmop.compressors.c_abstractor import Bottleneck, CAbstractor
from qmop.features import VisualFeatures
from qmop.tiny.assemble import tiny_model

MakeFeatures = Callable[..., VisualFeatures]


def abstractor(**options: Any) -> CAbstractor:
    torch.manual_seed(7)
    return CAbstractor(**{"width": 16, "grid": 6, "tokens": 9, "language_width": 20, "depth": 2, **options})


def scrambled(**options: Any) -> Any:
    method = abstractor(**options)
    with torch.no_grad():
        for value in method.parameters():
            value.copy_(torch.randn_like(value) * 0.5)
    return method.double()


def silu(states: Tensor) -> Tensor:
    return states / (1 + (-states).exp())


def normed(norm: Any, states: Tensor) -> Tensor:
    centred = states - states.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def spatial_by_hand(convolution: nn.Conv2d, map_HWC: Tensor, group_width: int) -> Tensor:
    """3 x 3 within groups of channels, place by place and group by group, with zeros outside."""
    grid, _, width = map_HWC.shape
    padded = map_HWC.new_zeros(grid + 2, grid + 2, width)
    padded[1:-1, 1:-1] = map_HWC
    result = torch.empty_like(map_HWC)
    for row in range(grid):
        for column in range(grid):
            for first in range(0, width, group_width):
                group = slice(first, first + group_width)
                patch = padded[row : row + 3, column : column + 3, group]
                result[row, column, group] = torch.einsum("oiyx,yxi->o", convolution.weight[group], patch)
    return result


def block_by_hand(block: Bottleneck, map_HWC: Tensor, group_width: int) -> Tensor:
    hidden = silu(normed(block.enter_norm, map_HWC @ block.enter.weight.T))
    hidden = silu(normed(block.spatial_norm, spatial_by_hand(block.spatial, hidden, group_width)))
    gate = silu(block.excite.squeeze.weight @ hidden.mean((0, 1)) + block.excite.squeeze.bias)
    gate = block.excite.excite.weight @ gate + block.excite.excite.bias
    hidden = normed(block.leave_norm, (hidden / (1 + (-gate).exp())) @ block.leave.weight.T)
    if isinstance(block.skip, nn.Sequential):
        map_HWC = normed(block.skip[1], map_HWC @ block.skip[0].weight.T)  # type: ignore[union-attr]
    return silu(hidden + map_HWC)


@pytest.mark.parametrize("tokens", [36, 9, 4, 1])
@pytest.mark.parametrize(("hidden", "group_width"), [(None, 1), (12, 1), (24, 4)])
def test_equals_its_blocks_place_by_place(
    make_features: MakeFeatures, tokens: int, hidden: int | None, group_width: int
) -> None:
    method = scrambled(tokens=tokens, hidden=hidden, group_width=group_width)
    features, side = make_features(2), round(tokens**0.5)
    features.patches_BNC = features.patches_BNC.double()
    for row, tokens_MC in enumerate(method(features).tokens_BMC):
        states = (features.patches_BNC[row] + method.position_NC).view(6, 6, 16)
        for block in method.before:
            states = block_by_hand(block, states, group_width)
        states = states.view(side, 6 // side, side, 6 // side, -1).mean(3).mean(1)
        for block in method.after:
            states = block_by_hand(block, states, group_width)
        first, last = method.readout[0], method.readout[2]
        expected = silu(states.flatten(0, 1) @ first.weight.T + first.bias) @ last.weight.T + last.bias
        torch.testing.assert_close(tokens_MC, expected, rtol=0, atol=1e-11)


def test_positions_may_be_left_out(make_features: MakeFeatures) -> None:
    bare, placed, features = abstractor(positions=False), abstractor(), make_features(1)
    assert set(placed.state_dict()) - set(bare.state_dict()) == {"position_NC"}
    placed.load_state_dict(bare.state_dict(), strict=False)
    assert (placed(features).tokens_BMC - bare(features).tokens_BMC).abs().max() > 1e-5
    nn.init.zeros_(placed.position_NC)  # type: ignore[arg-type]
    assert torch.equal(placed(features).tokens_BMC, bare(features).tokens_BMC)


def test_the_size_at_llava_7b_is_the_published_designs() -> None:
    with torch.device("meta"):
        method = build_projector("c_abstractor", tokens=144).compressor
    gate = 2 * 1024 * 256 + 256 + 1024
    block = 2 * 1024 * 1024 + 9 * 1024 + 3 * 2 * 1024 + gate
    readout = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert sum(p.numel() for p in method.parameters()) == 6 * block + readout + 576 * 1024 == 37_398_016
    assert method(VisualFeatures(patches_BNC=torch.empty(2, 576, 1024, device="meta"))).tokens_BMC.shape[1:] == (
        144,
        4096,
    )


def test_start_values_survive_the_construction_of_a_model() -> None:
    torch.manual_seed(0)
    model = tiny_model("c_abstractor", 16)
    compressor: Any = model.model.multi_modal_projector.compressor
    assert len(compressor.before) == len(compressor.after) == 3
    for name, value in compressor.named_parameters():
        if "norm" in name:
            assert (value == float(name.endswith("weight"))).all(), name
        elif name.endswith("bias"):
            assert not value.any(), name
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.15), name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hidden": 0}, "hidden is 0, .*: choose 1 or more"),
        ({"depth": 0}, "depth is 0, .*: choose 1 or more"),
        ({"group_width": 5}, "group_width is 5, which does not divide hidden 16: choose a divisor"),
        ({"squeeze": 0.0}, "squeeze is 0.0, .*: choose a positive share"),
    ],
)
def test_fields_that_make_no_network_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        abstractor(**options)
