from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModel

from qmop import encoders
from qmop.compressors.base import Declaration, Reads
from qmop.encoders import QueryEncoder, visual_features
from qmop.tiny.configs import query_config, vision_config
from qmop.tiny.tokenizer import query_tokenizer


@pytest.fixture(scope="module")
def tower() -> CLIPVisionModel:
    torch.manual_seed(0)
    tower = CLIPVisionModel(vision_config()).eval()
    for block in tower.encoder.layers:  # random towers attend evenly: sharpen them
        torch.nn.init.normal_(block.self_attn.q_proj.weight, std=0.2)
        torch.nn.init.normal_(block.self_attn.k_proj.weight, std=0.2)
    return tower.requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def declares(*reads: Reads) -> Declaration:
    return Declaration(name="probe", source="test", reads=frozenset(reads))


@pytest.mark.parametrize("layer", [-1, -3, 0, 2])
def test_class_attention_equals_the_eager_map(tower: CLIPVisionModel, pixels: torch.Tensor, layer: int) -> None:
    config = CLIPVisionConfig.from_dict(tower.config.to_dict())
    config._attn_implementation = "eager"
    eager = CLIPVisionModel(config).eval()
    eager.load_state_dict(tower.state_dict())
    maps = eager(pixels, output_attentions=True).attentions
    assert len(maps) == 6
    expected = maps[layer].mean(dim=1)[:, 0, 1:]
    states = tower(pixels, output_hidden_states=True).hidden_states
    found = class_attention(tower, states, layer)
    assert found.shape == (2, 144)
    assert found.max() > 3 / 144  # sharp enough to tell layers and heads apart
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_patches_and_summary_come_from_the_selected_layer(tower: CLIPVisionModel, pixels: torch.Tensor) -> None:
    states = tower(pixels, output_hidden_states=True).hidden_states
    features = visual_features(tower, pixels, declares("summary"))
    assert features.grid == (12, 12)
    assert torch.equal(features.patches_BNC, states[-2][:, 1:])
    assert torch.equal(features.need("summary_BC"), states[-2][:, 0])
    other = visual_features(tower, pixels, declares(), layer=-4)
    assert torch.equal(other.patches_BNC, states[-4][:, 1:])


def test_importance_comes_from_its_own_layer(tower: CLIPVisionModel, pixels: torch.Tensor) -> None:
    states = tower(pixels, output_hidden_states=True).hidden_states
    for layer in (-1, -2):
        features = visual_features(tower, pixels, declares("cls_attention"), attention_layer=layer)
        assert torch.equal(features.need("cls_attention_BN"), class_attention(tower, states, layer))


def test_text_space_is_the_projected_last_state(tower: CLIPVisionModel, pixels: torch.Tensor) -> None:
    torch.manual_seed(2)
    projection = torch.nn.Linear(128, 128, bias=False)
    features = visual_features(tower, pixels, declares("text_space"), projection=projection)
    last = tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    norm = tower.post_layernorm
    expected = F.layer_norm(last, (128,), norm.weight, norm.bias, norm.eps) @ projection.weight.T
    torch.testing.assert_close(features.need("text_space_BNE"), expected, rtol=0, atol=1e-5)


FIELDS: dict[Reads, str] = {
    "summary": "summary_BC",
    "cls_attention": "cls_attention_BN",
    "text_space": "text_space_BNE",
}


@pytest.mark.parametrize("read", [None, *FIELDS])
def test_only_what_is_declared_is_computed(tower: CLIPVisionModel, pixels: torch.Tensor, read: Reads | None) -> None:
    calls: list[int] = []
    projection = torch.nn.Linear(128, 128, bias=False)
    projection.register_forward_hook(lambda *_: calls.append(1))
    with patch.object(encoders, "class_attention", wraps=class_attention) as attention:
        features = visual_features(tower, pixels[:1], declares(*([read] if read else [])), projection=projection)
    present = {name for name in FIELDS.values() if getattr(features, name) is not None}
    assert present == ({FIELDS[read]} if read else set())
    assert attention.call_count == (read == "cls_attention")
    assert len(calls) == (read == "text_space")


def test_text_space_without_a_text_tower_is_refused(tower: CLIPVisionModel, pixels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"probe compares patches with the question.*build it with a query_config"):
        visual_features(tower, pixels, declares("text_space"))


def test_questions_become_projected_end_tokens_whatever_the_padding() -> None:
    words = query_tokenizer()
    torch.manual_seed(3)
    encoder = QueryEncoder(query_config(words), vision_config()).eval()
    questions = ["is it red ?", "how many large blue circles are in the picture ?"]
    batch = words(questions, padding=True, return_tensors="pt")
    query = encoder(batch["input_ids"], batch["attention_mask"])
    assert isinstance(encoder.text_tower, CLIPTextModelWithProjection)
    stock = encoder.text_tower(**batch).text_embeds
    torch.testing.assert_close(query.text_BE, stock, rtol=0, atol=1e-6)
    for row, question in enumerate(questions):
        alone = words(question, return_tensors="pt")
        states = encoder.text_tower.text_model(**alone).last_hidden_state
        assert query.eos_BC is not None
        torch.testing.assert_close(query.eos_BC[row], states[0, -1], rtol=0, atol=1e-5)
        by_hand = encoder.text_tower.text_projection(states[0, -1])
        torch.testing.assert_close(query.text_BE[row], by_hand, rtol=0, atol=1e-5)
