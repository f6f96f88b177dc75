from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from qmop.encoders import reader_of
from qmop.encoders.clip import ClipReader

LAYERS = [-1, -3, 0, 2]


@pytest.fixture(scope="module")
def eager(clip: CLIPVisionModel) -> CLIPVisionModel:
    """The same tower with the kernel that returns attention maps."""
    config = CLIPVisionConfig.from_dict(clip.config.to_dict())
    config._attn_implementation = "eager"
    tower = CLIPVisionModel(config).eval()
    tower.load_state_dict(clip.state_dict())
    return tower


@pytest.fixture(scope="module")
def reader(clip: CLIPVisionModel) -> ClipReader:
    reader = reader_of(clip)
    assert isinstance(reader, ClipReader)
    return reader


@pytest.mark.parametrize("layer", LAYERS)
def test_importance_equals_the_eager_map(
    reader: ClipReader, eager: CLIPVisionModel, pixels: torch.Tensor, layer: int
) -> None:
    maps = eager(pixels, output_attentions=True).attentions
    assert len(maps) == 6
    expected = maps[layer].mean(dim=1)[:, 0, 1:]
    found = reader.importance(reader.states(pixels), layer, split_heads=True)
    assert found.shape == (2, 144)
    assert found.dtype == torch.float32
    assert found.max() > 3 / 144  # sharp enough to tell layers and heads apart
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer", LAYERS)
def test_unsplit_importance_is_one_softmax_over_all_keys(
    reader: ClipReader, clip: CLIPVisionModel, pixels: torch.Tensor, layer: int
) -> None:
    states = reader.states(pixels)
    block, entering = clip.encoder.layers[layer], states[layer % 6]
    seen = F.layer_norm(entering, (128,), block.layer_norm1.weight, block.layer_norm1.bias, 1e-5)
    attention = block.self_attn
    query = seen[:, 0] @ attention.q_proj.weight.T + attention.q_proj.bias
    keys = seen @ attention.k_proj.weight.T + attention.k_proj.bias
    assert keys.shape == (2, 145, 128)
    whole = torch.softmax((keys @ query[:, :, None]).squeeze(-1) / 128**0.5, dim=1)
    torch.testing.assert_close(whole.sum(1), torch.ones(2))
    found = reader.importance(states, layer, split_heads=False)
    torch.testing.assert_close(found, whole[:, 1:], rtol=0, atol=1e-5)
    assert (found - reader.importance(states, layer, split_heads=True)).abs().max() > 1e-4


def test_importance_at_the_size_of_llava_is_a_softmax_over_577_keys() -> None:
    torch.manual_seed(4)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=336, patch_size=14
    )
    own = ClipReader(CLIPVisionModel(config).eval())
    states = own.states(torch.randn(1, 3, 336, 336))
    attention, seen = own.tower.encoder.layers[0].self_attn, own.tower.encoder.layers[0].layer_norm1(states[0])
    logits = attention.q_proj(seen[:, :1]) @ attention.k_proj(seen).transpose(1, 2) / 32**0.5
    assert logits.shape == (1, 1, 577)
    torch.testing.assert_close(own.importance(states, -1, split_heads=False), logits.softmax(-1)[:, 0, 1:])


@pytest.mark.parametrize("layer", LAYERS)
def test_keys_equal_those_of_the_eager_module(
    reader: ClipReader, eager: CLIPVisionModel, pixels: torch.Tensor, layer: int
) -> None:
    seen: list[torch.Tensor] = []
    hook = eager.encoder.layers[layer].self_attn.k_proj.register_forward_hook(lambda *call: seen.append(call[2]))
    eager(pixels)
    hook.remove()
    keys = reader.keys(reader.states(pixels), layer)
    assert keys.shape == (2, 144, 4, 32)
    torch.testing.assert_close(keys.flatten(2), seen[0][:, 1:], rtol=0, atol=1e-5)


def test_the_summary_is_the_class_token_of_its_layer(reader: ClipReader, pixels: torch.Tensor) -> None:
    states = reader.states(pixels)
    for layer in (-2, -4):
        assert torch.equal(reader.summary(states, layer), states[layer][:, 0])
        assert torch.equal(reader.class_token(states, layer), states[layer][:, 0])
        assert torch.equal(reader.patches(states, layer), states[layer][:, 1:])


@pytest.mark.parametrize(("layer", "norm"), [(-1, True), (-1, False), (-2, True)])
def test_text_space_is_the_projected_state(
    reader: ClipReader, clip: CLIPVisionModel, pixels: torch.Tensor, layer: int, *, norm: bool
) -> None:
    torch.manual_seed(2)
    projection = torch.nn.Linear(128, 96, bias=False)
    states = reader.states(pixels)
    expected = states[layer][:, 1:]
    if norm:
        last = clip.post_layernorm
        expected = F.layer_norm(expected, (128,), last.weight, last.bias, last.eps)
    found = reader.text_space(states, layer, norm=norm, projection=projection)
    torch.testing.assert_close(found, expected @ projection.weight.T, rtol=0, atol=1e-5)


def test_importance_is_read_in_single_precision_from_a_half_precision_tower(pixels: torch.Tensor) -> None:
    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=96, patch_size=8
    )
    half = ClipReader(CLIPVisionModel(config).bfloat16().eval())
    found = half.importance(half.states(pixels.bfloat16()), -1, split_heads=True)
    assert found.dtype == torch.float32
    assert found.unique().numel() > 144  # no two patches tie, as they would after rounding to eight bits


@pytest.mark.parametrize("split_heads", [True, False])
def test_the_folded_row_is_the_projected_one(
    reader: ClipReader, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch, *, split_heads: bool
) -> None:
    """Weights that must not be read beside `forward` are projected; both ways tell the same."""
    states = reader.states(pixels)
    folded = reader.importance(states, -1, split_heads=split_heads)
    monkeypatch.setattr("qmop.encoders.clip.foldable", lambda _: False)
    torch.testing.assert_close(folded, reader.importance(states, -1, split_heads=split_heads), rtol=0, atol=1e-6)
