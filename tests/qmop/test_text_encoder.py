from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from qmop.text_encoder import load_query_encoder
from qmop.tiny.configs import query_config, vision_config
from qmop.tiny.tokenizer import query_tokenizer

QUESTIONS = ["how many red objects ?", "what ?"]


@pytest.fixture(scope="module")
def clip() -> Any:
    """Its configuration of the text tower says nothing of the projection's width."""
    text = query_config(query_tokenizer()).to_dict() | {"projection_dim": 512}
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision_config().to_dict(), projection_dim=48)).eval()


@pytest.fixture
def folder(clip: Any, tmp_path: Path) -> Path:
    clip.save_pretrained(tmp_path)
    query_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def test_questions_and_patches_land_where_the_checkpoint_puts_them(clip: Any, folder: Path) -> None:
    encoder, tokenizer = load_query_encoder(folder, vision_config())
    batch = tokenizer(QUESTIONS, padding=True, return_tensors="pt")
    expected = clip.get_text_features(**batch).pooler_output
    assert torch.equal(encoder(**batch).text_BE, expected)
    assert expected.shape == (2, 48)
    assert encoder.visual_projection is not None
    assert torch.equal(encoder.visual_projection.weight, clip.visual_projection.weight)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_the_precision_is_the_caller_s(folder: Path) -> None:
    encoder, _ = load_query_encoder(folder, vision_config(), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}


def test_weights_may_lie_in_several_files(clip: Any, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    clip.save_pretrained(folder, max_shard_size="1MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    encoder, _ = load_query_encoder(folder, vision_config())
    assert encoder.visual_projection is not None
    assert torch.equal(encoder.visual_projection.weight, clip.visual_projection.weight)


@torch.no_grad()
def test_a_siglip_checkpoint_is_read_too(tmp_path: Path) -> None:
    words = query_tokenizer()
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=96, patch_size=8
    )
    text = SiglipTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_size=32,
        pad_token_id=words.pad_token_id,
    )
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).eval()
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    encoder, tokenizer = load_query_encoder(tmp_path, vision)
    batch = tokenizer(QUESTIONS, padding="max_length", max_length=16, return_tensors="pt")
    expected = model.get_text_features(input_ids=batch["input_ids"]).pooler_output
    torch.testing.assert_close(encoder(**batch).text_BE, expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"is paired with a siglip_vision_model, but the model's .* is a clip_vision_model"
    ):
        load_query_encoder(tmp_path, vision_config())


def test_folders_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no model"):
        load_query_encoder(tmp_path, vision_config())


def test_pickled_weights_are_never_read(clip: Any, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(clip.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        load_query_encoder(folder, vision_config())


def test_models_without_a_text_tower_are_refused(folder: Path) -> None:
    vision_config().save_pretrained(folder)
    with pytest.raises(ValueError, match=r"holds a clip_vision_model model.*folder of a clip or siglip checkpoint"):
        load_query_encoder(folder, vision_config())


@pytest.mark.parametrize(("field", "value"), [("hidden_size", 64), ("num_hidden_layers", 3)])
def test_towers_that_are_not_paired_are_refused(folder: Path, field: str, value: int) -> None:
    other = CLIPVisionConfig(**(vision_config().to_dict() | {field: value}))
    with pytest.raises(ValueError, match=f"has {field} .*, but the model's has {value}: give the checkpoint"):
        load_query_encoder(folder, other)


def test_damaged_and_incomplete_files_are_refused_in_a_sentence(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    bare = {name: value for name, value in weights.items() if "visual_projection" not in name}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks visual_projection\.weight"):
        load_query_encoder(folder, vision_config())
    del bare["text_projection.weight"]
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights of its text tower \(text_projection.weight\)"):
        load_query_encoder(folder, vision_config())
    (folder / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(ValueError, match="is damaged"):
        load_query_encoder(folder, vision_config())


def test_a_missing_tokenizer_is_named(clip: Any, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no tokenizer: save"):
        load_query_encoder(tmp_path, vision_config())
