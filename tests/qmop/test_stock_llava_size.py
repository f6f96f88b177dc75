"""LLaVA-1.5-7B in its exact names and widths, with two of its 32 language layers and random weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from qmop import from_llava, load

pytestmark = pytest.mark.pipeline

LAYERS, VOCABULARY, BLOCK = 2, 32064, 1_000_003
VISION = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
    projection_dim=768,
)
TEXT = CLIPTextConfig(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    projection_dim=768,
    bos_token_id=0,
    eos_token_id=2,  # as published, though its tokenizer ends questions with 49407
)
LANGUAGE = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=LAYERS,
    num_attention_heads=32,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
)
PEAK = """
import sys, torch
from pathlib import Path
from qmop import from_llava
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
before = peak()
model, _ = from_llava(sys.argv[1], sys.argv[2], "qmop", tokens=144)
print(before, peak(), sum(p.numel() * p.element_size() for p in model.parameters()))
"""


def drawn(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Random weights out of one repeated block (of a prime length, so that no two rows are alike): quick to make."""
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))
    weights = {}
    for name, shape in shapes.items():
        values = block.repeat(-(-shape.numel() // BLOCK))[: shape.numel()].view(shape)
        one = name.endswith("norm.weight") or "layernorm" in name or "layrnorm" in name or "layer_norm" in name
        weights[name] = (1 + 0.01 * values if one else values * shape[-1] ** -0.5).bfloat16()
    return weights


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for gigabytes, emptied afterwards."""
    folder = tmp_path_factory.mktemp("size")
    yield folder
    shutil.rmtree(folder)


def words(count: int, more: list[str]) -> Tokenizer:
    vocabulary = {f"w{index}": index for index in range(count)}
    core = Tokenizer(models.WordLevel({**vocabulary, **{word: count + i for i, word in enumerate(more)}}, "w3"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return core


@pytest.fixture(scope="module")
def llava(room: Path) -> Path:
    """The checkpoint, as the hub's is laid out."""
    (folder := room / "llava").mkdir()
    config = LlavaConfig(vision_config=VISION, text_config=LANGUAGE, image_token_index=32000, dtype="bfloat16")
    with torch.device("meta"):
        stock = LlavaForConditionalGeneration(config)
    older = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
    older |= {"model.vision_tower.": "vision_tower.vision_model.", "model.multi_modal": "multi_modal"}
    shapes = {}
    for name, value in stock.state_dict().items():
        prefix = next(prefix for prefix in older if name.startswith(prefix))
        shapes[older[prefix] + name.removeprefix(prefix)] = value.shape
    assert shapes["language_model.model.embed_tokens.weight"] == (VOCABULARY, 4096)
    assert shapes["language_model.model.layers.1.mlp.gate_proj.weight"] == (11008, 4096)
    assert shapes["vision_tower.vision_model.encoder.layers.23.self_attn.q_proj.weight"] == (1024, 1024)
    assert shapes["vision_tower.vision_model.embeddings.position_embedding.weight"] == (577, 1024)
    assert shapes["multi_modal_projector.linear_1.weight"] == (4096, 1024)
    save_file(drawn(shapes), folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words(32000, ["<image>", "<pad>"]),
        bos_token="w1",
        eos_token="w2",
        unk_token="w3",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    LlavaProcessor(
        pictures, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(room: Path) -> Path:
    """CLIP ViT-L/14-336's text half in its own names."""
    (folder := room / "clip").mkdir()
    with torch.device("meta"):
        text = CLIPTextModelWithProjection(TEXT)
    shapes = {name: value.shape for name, value in text.state_dict().items()}
    assert shapes["text_model.encoder.layers.11.mlp.fc1.weight"] == (3072, 768)
    assert shapes["text_projection.weight"] == (768, 768)
    save_file(
        drawn({**shapes, "visual_projection.weight": torch.Size([768, 1024])}),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    CLIPConfig(text_config=TEXT.to_dict(), vision_config=VISION.to_dict(), projection_dim=768).save_pretrained(folder)
    core = words(49406, ["<|startoftext|>", "<|endoftext|>"])
    ends = [("<|startoftext|>", 49406), ("<|endoftext|>", 49407)]
    core.post_processor = processors.TemplateProcessing(single=f"{ends[0][0]} $A {ends[1][0]}", special_tokens=ends)
    PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=ends[0][0],
        eos_token=ends[1][0],
        pad_token=ends[1][0],
        unk_token="w3",
        model_max_length=77,
    ).save_pretrained(folder)
    return folder


@pytest.mark.soak  # three gigabytes, written twice
def test_it_loads_answers_and_comes_back_from_disk(llava: Path, clip: Path, room: Path) -> None:
    torch.manual_seed(0)
    model, processor = from_llava(llava, clip, "qmop", tokens=144)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.language_model.config.num_hidden_layers == LAYERS
    picture = Image.effect_noise((400, 300), 80).convert("RGB")
    batch = processor(images=picture, text="w1 <image> w7 w8", query="w9 w10", return_tensors="pt")
    assert (batch["input_ids"] == 32000).sum() == 144
    with torch.no_grad():
        logits = model(**batch).logits
    assert logits.shape == (1, batch["input_ids"].shape[1], VOCABULARY)
    assert logits.isfinite().all()
    assert logits.std() > 0.1
    told = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert told.shape[1] == batch["input_ids"].shape[1] + 3
    saved = room / "saved"
    model.save_pretrained(saved)
    processor.save_pretrained(saved)
    assert {path.suffix for path in saved.glob("model*")} == {".safetensors"}
    again, _ = load(saved, dtype=None)
    before, after = model.state_dict(), again.state_dict()
    assert list(before) == list(after)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, logits)


def test_its_weights_are_never_held_twice(llava: Path, clip: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(llava), str(clip)], capture_output=True, text=True, timeout=250, check=True
    )
    before, peak, weights = map(int, run.stdout.split()[-3:])
    assert weights > 2.2e9
    assert peak - before < 1.4 * weights, json.dumps({"before": before, "peak": peak, "weights": weights})
