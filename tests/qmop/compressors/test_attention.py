from __future__ import annotations

import pytest
import torch
from torch import nn

from qmop.compressors.attention import KeyValue


def test_identity_start_hands_the_patches_through() -> None:
    parts = KeyValue(16, 4, "none", "identity")
    parts.initialise()
    patches = torch.randn(2, 9, 16)
    _, values = parts.keys_values(patches)
    assert torch.equal(values, patches)
    assert torch.equal(parts.output(values), patches)


def test_identity_start_leaves_the_keys_random() -> None:
    parts = KeyValue(16, 4, "none", "identity")
    parts.initialise()
    assert not torch.equal(parts.key.weight, torch.eye(16))
    assert parts.key.weight.abs().max() > 0


def test_normal_start_has_the_stated_deviation_and_zero_bias() -> None:
    torch.manual_seed(0)
    parts = KeyValue(128, 4, "none", "normal")
    parts.initialise()
    for linear in (parts.key, parts.value, parts.output):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not linear.bias.any()


@pytest.mark.parametrize(
    ("norm", "normed"), [("none", (0, 0, 0)), ("qk", (1, 1, 0)), ("qkv", (1, 1, 1))], ids=["none", "qk", "qkv"]
)
def test_norms_stand_where_the_option_says(norm: str, normed: tuple[int, int, int]) -> None:
    parts = KeyValue(16, 4, norm, "normal")  # type: ignore[arg-type]
    found = tuple(int(isinstance(n, nn.LayerNorm)) for n in (parts.query_norm, parts.key_norm, parts.value_norm))
    assert found == normed


def test_positions_reach_the_keys_and_not_the_values() -> None:
    parts = KeyValue(16, 4, "none", "identity")
    parts.initialise()
    patches, positions = torch.randn(2, 9, 16), torch.randn(9, 16)
    keys, values = parts.keys_values(patches)
    placed_keys, placed_values = parts.keys_values(patches, positions)
    assert torch.equal(values, placed_values)
    torch.testing.assert_close(placed_keys - keys, (positions @ parts.key.weight.T).expand(2, -1, -1))


@pytest.mark.parametrize("heads", [3, 0, -4])
def test_heads_that_do_not_divide_the_width_are_refused(heads: int) -> None:
    with pytest.raises(ValueError, match=rf"heads is {heads}.*width 16: choose a divisor"):
        KeyValue(16, heads, "none", "normal")


@pytest.mark.parametrize(
    ("norm", "value_init", "said"),
    [("layer", "normal", "norm is 'layer': choose one of qkv, qk, none"), ("qk", "ones", "value_init is 'ones'")],
)
def test_unknown_choices_are_refused_by_name(norm: str, value_init: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KeyValue(16, 4, norm, value_init)  # type: ignore[arg-type]
