from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import SiglipTextConfig, SiglipVisionConfig, SiglipVisionModel

from qmop.compressors import list_compressors
from qmop.configuration_qmop import QMoPConfig
from qmop.encoders import QueryEncoder, reader_of, visual_features
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.tiny.configs import language_config
from qmop.tiny.tokenizer import IMAGE, language_tokenizer, query_tokenizer
from tests.qmop.encoders.conftest import Declares

DECLARED = list_compressors()
CLASSLESS = sorted(name for name, declared in DECLARED.items() if "class_token" not in declared.reads)
CLASSY = sorted(set(DECLARED) - set(CLASSLESS))


@pytest.fixture(scope="module")
def small() -> Tensor:
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


def final(tower: SiglipVisionModel, pixels: Tensor) -> Tensor:
    return tower(pixels).last_hidden_state


def test_the_summary_is_the_pooled_image_and_the_patches_those_of_the_layer(
    siglip: SiglipVisionModel, small: Tensor, declares: Declares
) -> None:
    output = siglip(small, output_hidden_states=True)
    features = visual_features(siglip, small, declares("summary"))
    assert features.grid == (6, 6)
    assert torch.equal(features.patches_BNC, output.hidden_states[-2])
    torch.testing.assert_close(features.need("summary_BC"), output.pooler_output, rtol=0, atol=1e-6)


@pytest.mark.parametrize("split", [True, False])
def test_importance_is_the_attention_of_the_probe(siglip: SiglipVisionModel, small: Tensor, *, split: bool) -> None:
    reader, head = reader_of(siglip), siglip.head
    patches, probe = final(siglip, small), siglip.head.probe.expand(2, -1, -1)
    if split:
        _, rows = head.attention(probe, patches, patches, need_weights=True, average_attn_weights=True)
        expected = rows[:, 0]
    else:
        weight, bias = head.attention.in_proj_weight, head.attention.in_proj_bias
        query, keys = probe @ weight[:64].T + bias[:64], patches @ weight[64:128].T + bias[64:128]
        expected = (query @ keys.transpose(1, 2) / 64**0.5).softmax(-1)[:, 0]
    states = reader.states(small)
    found = reader.importance(states, -1, split_heads=split)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.sum(1), torch.ones(2))
    assert found.max() > 3 / 36
    assert torch.equal(found, reader.importance(states, 0, split_heads=split))  # the declared layer plays no part


def test_keys_come_from_the_blocks(siglip: SiglipVisionModel, small: Tensor) -> None:
    reader = reader_of(siglip)
    for layer in (-1, 0, 2):
        seen: list[Tensor] = []
        hook = siglip.encoder.layers[layer].self_attn.k_proj.register_forward_hook(
            lambda *c, out=seen: out.append(c[2])
        )
        states = reader.states(small)
        hook.remove()
        keys = reader.keys(states, layer)
        assert keys.shape == (2, 36, 4, 16)
        torch.testing.assert_close(keys.flatten(2), seen[0], rtol=0, atol=1e-5)


def test_text_space_is_the_value_path_and_the_mlp_of_the_pooling_head(siglip: SiglipVisionModel, small: Tensor) -> None:
    reader, head = reader_of(siglip), siglip.head
    states = reader.states(small)
    attention = head.attention
    value = final(siglip, small) @ attention.in_proj_weight[128:].T + attention.in_proj_bias[128:]
    token = attention.out_proj(value)
    expected = token + head.mlp(head.layernorm(token))
    found = reader.text_space(states, -1, norm=True, projection=None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    raw = reader.text_space(states, -2, norm=False, projection=None)
    alone = head(states[-2][1, 7:8][None])
    torch.testing.assert_close(raw[1, 7], alone[0], rtol=0, atol=1e-5)


def test_pictures_of_another_size_get_interpolated_positions(siglip: SiglipVisionModel, declares: Declares) -> None:
    wide = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(2))
    features = visual_features(siglip, wide, declares("summary", "cls_attention", "keys"))
    assert features.grid == (4, 8)
    stock = siglip(wide, interpolate_pos_encoding=True, output_hidden_states=True)
    assert torch.equal(features.patches_BNC, stock.hidden_states[-2])
    torch.testing.assert_close(features.need("summary_BC"), stock.pooler_output, rtol=0, atol=1e-6)
    assert features.need("cls_attention_BN").shape == (1, 32)


def test_a_class_token_is_refused(siglip: SiglipVisionModel, small: Tensor, declares: Declares) -> None:
    with pytest.raises(ValueError, match="reads a class token, but a siglip_vision_model has none: choose a method"):
        visual_features(siglip, small, declares("class_token"))


@pytest.mark.parametrize("read", ["summary", "cls_attention"])
def test_a_tower_without_its_pooling_head_is_refused(
    siglip_config: SiglipVisionConfig, small: Tensor, declares: Declares, read: str
) -> None:
    headless = SiglipVisionModel(SiglipVisionConfig(**{**siglip_config.to_dict(), "vision_use_head": False})).eval()
    assert visual_features(headless, small, declares("keys")).keys_BNHd is not None
    with pytest.raises(ValueError, match=r"this SigLIP tower has none \(vision_use_head is false\): take a tower with"):
        visual_features(headless, small, declares(read))


def siglip_model(siglip_config: SiglipVisionConfig, method: str, **fields: Any) -> QMoPForConditionalGeneration:
    """A tiny model of SigLIP towers around a method."""
    words, questions = language_tokenizer(), query_tokenizer(32)
    text = SiglipTextConfig(
        vocab_size=len(questions),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        projection_size=64,
        pad_token_id=questions.pad_token_id,
        bos_token_id=questions.bos_token_id,
        eos_token_id=questions.eos_token_id,
    )
    torch.manual_seed(7)
    return QMoPForConditionalGeneration(
        QMoPConfig(
            vision_config=siglip_config,
            text_config=language_config(words),
            query_config=text,
            image_token_index=words.convert_tokens_to_ids(IMAGE),
            compressor=method,
            **fields,
        )
    ).eval()


def prompt(model: QMoPForConditionalGeneration, images: int = 2) -> dict[str, Tensor]:
    words, questions = language_tokenizer(), query_tokenizer(32)
    placeholders = IMAGE * model.model.multi_modal_projector.token_count()
    asked = questions(["is it red ?", "how many ?"][:images], padding=True, return_tensors="pt")
    told = words([f"<user> {placeholders} is it <assistant>"] * images, return_tensors="pt")
    batch = {"input_ids": told["input_ids"], "attention_mask": told["attention_mask"]}
    batch |= {"query_input_ids": asked["input_ids"], "query_attention_mask": asked["attention_mask"]}
    declared = model.model.multi_modal_projector.declaration
    if "language_query" in declared.reads:
        batch |= {
            "language_query_ids": told["input_ids"][:, -3:],
            "language_query_mask": told["attention_mask"][:, -3:],
        }
    return batch


@pytest.mark.parametrize("method", CLASSLESS)
def test_every_method_without_a_class_token_runs_end_to_end(
    siglip_config: SiglipVisionConfig, small: Tensor, method: str
) -> None:
    tokens = None if method == "mlp" else 9
    model = siglip_model(siglip_config, method, compressor_tokens=tokens)
    with torch.no_grad():
        logits = model(**prompt(model), pixel_values=small).logits
        produced = model.generate(**prompt(model), pixel_values=small, max_new_tokens=2, min_new_tokens=2)
    assert logits.isfinite().all()
    assert produced.shape == (2, prompt(model)["input_ids"].shape[1] + 2)


@pytest.mark.parametrize("method", CLASSY)
def test_methods_of_the_class_token_refuse(siglip_config: SiglipVisionConfig, small: Tensor, method: str) -> None:
    model = siglip_model(siglip_config, method, compressor_tokens=9)
    with pytest.raises(ValueError, match=r"class token, but a siglip_vision_model has none: choose"):
        model(**prompt(model), pixel_values=small)


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_every_patch_is_read_whatever_the_stock_selection_says(
    siglip_config: SiglipVisionConfig, siglip: SiglipVisionModel, small: Tensor, strategy: str
) -> None:
    model = siglip_model(siglip_config, "mlp", vision_feature_select_strategy=strategy)
    model.model.vision_tower.load_state_dict(siglip.state_dict())
    tokens = model.get_image_features(small).compressed.tokens_BMC
    assert tokens.shape == (2, 36, 160)
    states = siglip(small, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(tokens, model.model.multi_modal_projector.connector(states), rtol=0, atol=1e-5)


def test_a_model_of_siglip_towers_is_saved_and_read_back(
    siglip_config: SiglipVisionConfig, small: Tensor, tmp_path: Any
) -> None:
    model = siglip_model(siglip_config, "prune", compressor_tokens=9)
    assert isinstance(model.model.query_encoder, QueryEncoder)
    model.save_pretrained(tmp_path)
    again = QMoPForConditionalGeneration.from_pretrained(tmp_path).eval()
    before, after = model.state_dict(), again.state_dict()
    assert list(before) == list(after)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    with torch.no_grad():
        batch = prompt(model)
        assert torch.equal(model(**batch, pixel_values=small).logits, again(**batch, pixel_values=small).logits)
