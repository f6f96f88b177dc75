from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionConfig,
)

from qmop import from_llava, list_compressors, load
from qmop.stock_llava import NAMES
from qmop.tiny.assemble import tiny_model, tiny_processor
from qmop.tiny.configs import language_config, query_config, vision_config
from qmop.tiny.tokenizer import IMAGE, language_tokenizer, query_tokenizer

Pictures = Callable[[int], list[Image.Image]]

QUESTIONS = ["what colour is the circle ?", "how many red objects are there in it ?"]
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


def lively(model: nn.Module) -> None:
    """Larger random weights, so that pictures make a visible difference."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed" not in name:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)


def stock_config(**fields: Any) -> LlavaConfig:
    words = language_tokenizer()
    language = language_config(words)
    language.tie_word_embeddings = False
    settings = {"vision_config": vision_config(), "text_config": language, "image_seq_length": 144}
    return LlavaConfig(**settings, image_token_index=words.convert_tokens_to_ids(IMAGE), **fields)


def stock_processor() -> LlavaProcessor:
    words = language_tokenizer()
    return LlavaProcessor(
        tiny_processor().image_processor,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=words.chat_template,
    )


@pytest.fixture(scope="module")
def stock() -> LlavaForConditionalGeneration:
    """Transformers' own LLaVA with a language head of its own."""
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(stock_config()).eval().requires_grad_(requires_grad=False)
    lively(model)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 3
    return model


@pytest.fixture(scope="module")
def folder(stock: LlavaForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That LLaVA as transformers saves it, with its processor."""
    folder = tmp_path_factory.mktemp("llava")
    stock.save_pretrained(folder)
    stock_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(stock: LlavaForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CLIP that the LLaVA's vision tower was taken from, saved with its tokenizer."""
    torch.manual_seed(1)
    words = query_tokenizer()
    config = CLIPConfig(
        text_config=query_config(words).to_dict(), vision_config=vision_config().to_dict(), projection_dim=128
    )
    model = CLIPModel(config)
    model.vision_model.load_state_dict(stock.model.vision_tower.state_dict())
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def rewritten(folder: Path, target: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """A copy of a checkpoint with other weights."""
    shutil.copytree(folder, target)
    save_file(change(load_file(target / "model.safetensors")), target / "model.safetensors", metadata={"format": "pt"})
    return target


def reconfigured(folder: Path, target: Path, **fields: Any) -> Path:
    """A copy of a checkpoint with other settings."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **fields}))
    return target


def hub_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As llava-hf's checkpoints were written by transformers 4."""
    older = {re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name): value for name, value in weights.items()}
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in older
    assert "language_model.lm_head.weight" in older
    assert "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight" in older
    assert "multi_modal_projector.linear_1.weight" in older
    older["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(145)[None]
    return older


@pytest.mark.parametrize("layout", ["saved", "present", "present with prefix", "hub", "sharded"])
def test_uncompressed_it_is_the_stock_model(
    stock: LlavaForConditionalGeneration, folder: Path, pictures: Pictures, tmp_path: Path, layout: str
) -> None:
    place = folder
    if layout == "hub":
        place = rewritten(folder, tmp_path / "it", hub_names)
    elif layout != "saved":
        stock.save_pretrained(
            tmp_path, save_original_format=layout == "sharded", max_shard_size="1MB" if layout == "sharded" else "5GB"
        )
        stock_processor().save_pretrained(tmp_path)
        place = tmp_path
    if layout == "present with prefix":
        vision = r"^model\.vision_tower\."
        place = rewritten(
            tmp_path,
            tmp_path / "it",
            lambda weights: {re.sub(vision, "model.vision_tower.vision_model.", k): v for k, v in weights.items()},
        )
    ours, processor = from_llava(place)
    assert not ours.training
    prompts = [f"<user> <image> {question} <assistant>" for question in QUESTIONS]
    batch = processor(images=pictures(2), text=prompts, padding=True, return_tensors="pt")
    theirs = stock_processor()(images=pictures(2), text=prompts, padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(batch[name], theirs[name])
    expected = stock(**theirs).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(**batch).logits, expected, rtol=0, atol=1e-5)
    batch["pixel_values"] = batch["pixel_values"].flip(0)
    assert (ours(**batch).logits - expected).abs().max() > 1e-2  # the pictures matter
    batch["pixel_values"] = batch["pixel_values"].flip(0)
    told = ours.generate(**batch, **GREEDY)
    assert torch.equal(told, stock.generate(**theirs, **GREEDY))
    assert told.shape[1] == batch["input_ids"].shape[1] + 8


def test_the_processor_is_the_checkpoints_own(folder: Path) -> None:
    _, processor = from_llava(folder, compressor="average_pool", tokens=16)
    assert processor.visual_tokens == 16
    assert isinstance(processor.image_processor, CLIPImageProcessorPil)
    assert processor.image_token == "<image>"
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is it red ?"}]}]
    told = processor.apply_chat_template(talk, add_generation_prompt=True)
    assert told == stock_processor().apply_chat_template(talk, add_generation_prompt=True)
    assert "<image>" in told


def test_generation_settings_and_configuration_are_carried_over(folder: Path) -> None:
    model, _ = from_llava(folder, compressor="average_pool", tokens=16)
    assert model.generation_config.eos_token_id == 3
    assert model.config.model_type == "qmop"
    assert (model.config.compressor, model.config.compressor_tokens) == ("average_pool", 16)
    assert model.config.image_seq_length == 16
    assert not model.config.tie_word_embeddings
    assert model.lm_head.weight.data_ptr() != model.model.language_model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("method", ["qmop", "prune"])
def test_a_guided_method_gets_the_paired_text_tower(
    folder: Path, clip_folder: Path, pictures: Pictures, tmp_path: Path, method: str
) -> None:
    clip = CLIPModel.from_pretrained(clip_folder)
    torch.manual_seed(5)
    model, processor = from_llava(folder, clip_folder, method, tokens=16)
    prompts = [f"<user> <image> {question} <assistant>" for question in QUESTIONS]
    batch = processor(images=pictures(2), text=prompts, query=QUESTIONS, padding=True, return_tensors="pt")
    assert (batch["input_ids"] == model.config.image_token_id).sum(1).tolist() == [16, 16]
    with torch.no_grad():
        query = model.model.query_encoder(batch["query_input_ids"], batch["query_attention_mask"])
        words = query_tokenizer()(QUESTIONS, padding=True, return_tensors="pt")
        torch.testing.assert_close(query.text_BE, clip.get_text_features(**words).pooler_output)
        projection = model.model.query_encoder.visual_projection
        assert torch.equal(projection.weight, clip.visual_projection.weight)
        logits = model(**batch).logits
    told = model.generate(**batch, **GREEDY)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, reread = load(tmp_path)
    assert torch.equal(again(**batch).logits, logits)
    assert torch.equal(again.generate(**batch, **GREEDY), told)
    fresh = reread(images=pictures(2), text=prompts, query=QUESTIONS, padding=True, return_tensors="pt")
    assert all(torch.equal(batch[name], fresh[name]) for name in batch)


@pytest.mark.parametrize("method", sorted(set(list_compressors()) - {"mlp"}))
def test_every_method_can_be_built_around_it(folder: Path, clip_folder: Path, pictures: Pictures, method: str) -> None:
    model, processor = from_llava(folder, clip_folder, method, tokens=16)
    prompts = [f"<user> <image> {question} <assistant>" for question in QUESTIONS]
    batch = processor(images=pictures(2), text=prompts, query=QUESTIONS, padding=True, return_tensors="pt")
    told = model.generate(**batch, max_new_tokens=2, min_new_tokens=2)
    assert told.shape[1] == batch["input_ids"].shape[1] + 2
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()


def test_it_is_saved_under_our_names_in_safetensors_only(folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    model, _ = from_llava(folder, clip_folder, "prune", tokens=16)
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_a_readout_of_its_own_replaces_the_connector(folder: Path) -> None:
    model, _ = from_llava(folder, compressor="pixel_shuffle", tokens=36)
    assert not list(model.model.multi_modal_projector.connector.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_fresh_parameters_follow_the_seed(folder: Path) -> None:
    def build(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return from_llava(folder, compressor="resampler", tokens=16)[0].state_dict()

    one, same, other = build(1), build(1), build(2)
    assert [name for name in one if not torch.equal(one[name], same[name])] == []
    assert {".compressor." in name for name in one if not torch.equal(one[name], other[name])} == {True}


@pytest.mark.parametrize(("asked", "got"), [(None, torch.float16), (torch.bfloat16, torch.bfloat16)])
def test_weights_are_of_the_asked_type_throughout(
    folder: Path, clip_folder: Path, tmp_path: Path, asked: torch.dtype | None, got: torch.dtype
) -> None:
    place = rewritten(folder, tmp_path / "half", lambda weights: {k: v.half() for k, v in weights.items()})
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    model, _ = from_llava(place, clip_folder, "qmop", tokens=16, dtype=asked)
    assert {parameter.dtype for parameter in model.parameters()} == {got}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda weights: {k: v for k, v in weights.items() if k != "multi_modal_projector.linear_2.bias"},
            r"missing model\.multi_modal_projector\.connector\.linear_2\.bias",
        ),
        (
            lambda weights: {k: v for k, v in weights.items() if not k.startswith("language_model.lm_head")},
            r"missing lm_head\.weight",
        ),
        (
            lambda weights: {**weights, "image_newline": torch.zeros(160)},
            "unexpected image_newline",
        ),
        (
            lambda weights: {**weights, "multi_modal_projector.linear_1.weight": torch.zeros(160, 256)},
            r"mismatched model\.multi_modal_projector\.connector\.linear_1\.weight \(160, 256\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str
) -> None:
    place = rewritten(folder, tmp_path / "it", change)
    with pytest.raises(ValueError, match=f"does not fit its own config.json .*{said}.*save the LLaVA again"):
        from_llava(place)


def test_a_guided_method_without_its_clip_is_refused_before_any_weight_is_read(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "cut")
    (place / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(
        ValueError, match=r"clip_checkpoint is missing, but qmop reads the question \(query, text_space"
    ):
        from_llava(place, compressor="qmop", tokens=16)
    with pytest.raises(ValueError, match=r"tokens is 20.*only into 144, 36, 16, 9, 4, 1"):
        from_llava(place, compressor="window_pool", tokens=20)
    with pytest.raises(ValueError, match="options names head, which"):
        from_llava(place, compressor="window_pool", tokens=16, head=5)
    with pytest.raises(ValueError, match="damaged"):
        from_llava(place)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "llava_next"}, "holds a llava_next model, not a stock LLaVA: give one"),
        ({"vision_feature_select_strategy": "full"}, "is 'full', but compressors read the patches of a clip_vision"),
        ({"vision_feature_layer": [-2, -5]}, r"vision_feature_layer of .* is \[-2, -5\], but compressors read one"),
        (
            {"image_token_index": 7},
            r"writes '<image>' \(id 4\) for an image, but config.json names id 7: add the token",
        ),
    ],
)
def test_what_is_no_fitting_llava_is_refused(folder: Path, tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_llava(reconfigured(folder, tmp_path / "it", **fields))


def test_a_model_of_ours_is_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a qmop model, not a stock LLaVA: load it with qmop\.load"):
        from_llava(tmp_path)


def test_a_missing_folder_or_processor_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere holds no model"):
        from_llava(tmp_path / "nowhere")
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*token*", "processor*"))
    with pytest.raises(ValueError, match="bare holds no processor: save the model's processor into the same folder"):
        from_llava(bare)


def test_another_clip_than_the_towers_own_is_refused(folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    config = json.loads((clip_folder / "config.json").read_text())
    vision = {**config["vision_config"], "image_size": 224}
    other = reconfigured(clip_folder, tmp_path / "clip", vision_config=vision)
    with pytest.raises(ValueError, match="clip has image_size 224, but the LLaVA's has 96: give the checkpoint that"):
        from_llava(folder, other, "prune", tokens=16)


def test_a_llava_over_siglip_reads_every_patch(pictures: Pictures, tmp_path: Path) -> None:
    vision = SiglipVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=96, patch_size=8
    )
    torch.manual_seed(3)
    config = stock_config(vision_feature_select_strategy="full")
    config.vision_config = vision
    stock = LlavaForConditionalGeneration(config).eval()
    lively(stock)
    stock.save_pretrained(tmp_path)
    stock_processor().save_pretrained(tmp_path)
    ours, processor = from_llava(tmp_path)
    prompt = f"<user> <image> {QUESTIONS[0]} <assistant>"
    batch = processor(images=pictures(1), text=prompt, return_tensors="pt")
    torch.testing.assert_close(ours(**batch).logits, stock(**batch).logits, rtol=0, atol=1e-5)
    with pytest.raises(
        ValueError, match="is 'default', but compressors read the patches of a siglip_vision_model, all"
    ):
        from_llava(reconfigured(tmp_path, tmp_path / "it", vision_feature_select_strategy="default"))


def test_names_of_ours_are_left_alone() -> None:
    for name in tiny_model().state_dict():
        if ".query_encoder." not in name:
            assert not any(re.search(old, name) for old in NAMES)
