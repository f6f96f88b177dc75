from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor
from qmop.slicing import slice_picture, token_count
from qmop.tiles import pictures_of, tile_pictures, tile_side
from qmop.tiny.assemble import tiny_config, tiny_model, tiny_processor

TOKENS = 16
QUESTIONS = ["what colour is the circle ?", "how many red objects ?"]


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def tiled(**options: Any) -> QMoPProcessor:
    """The tiny processor with tiles; its tokenizer reads no line breaks, so rows end in a semicolon."""
    plain = tiny_processor(TOKENS)
    fields = {"visual_tokens": TOKENS, "max_tiles": 9, "tile_separators": (",", ";"), **options}
    parts = (plain.image_processor, plain.tokenizer, plain.query_tokenizer)
    return QMoPProcessor(*parts, chat_template=plain.chat_template, **fields)


@pytest.fixture(scope="module")
def model() -> QMoPForConditionalGeneration:
    """QMoP with every branch on, and weights large enough for pictures to be told apart."""
    torch.manual_seed(1)
    built = tiny_model("qmop", TOKENS, select="all")
    with torch.no_grad():
        for module in built.modules():
            if isinstance(module, nn.Linear) and module is not built.lm_head:
                module.weight.normal_(0, module.in_features**-0.5)
    return built.requires_grad_(requires_grad=False)


def mixed(processor: QMoPProcessor) -> Any:
    """Two rows: a wide picture of six tiles and a small one of one tile; a tall picture of two tiles."""
    images = [picture(137, 183), picture(96, 96, 1), picture(192, 96, 2)]
    texts = ["<image> and <image> is it red ?", "<image> is it red ?"]
    return processor(images=images, text=texts, query=QUESTIONS, padding=True, return_tensors="pt")


def test_the_tiles_of_all_pictures_stand_one_behind_the_other() -> None:
    processor = tiled()
    batch = mixed(processor)
    assert batch["pixel_values"].shape == (7 + 1 + 3, 3, 96, 96)
    assert batch["image_rows"].tolist() == [0] * 8 + [1] * 3
    assert batch["overview_tiles"].tolist() == [6] * 7 + [7] + [10] * 3
    assert pictures_of(batch["overview_tiles"]).tolist() == [7, 1, 3]
    assert set(batch) <= set(processor.model_input_names)


def test_tiles_are_cut_from_the_normalised_picture_at_its_own_size() -> None:
    image = picture(137, 183)
    pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255
    expected = slice_picture((pixels - 0.5) / 0.25, tile=96, max_tiles=9)
    batch = tiled()(images=[image], text="<image>", return_tensors="pt")
    torch.testing.assert_close(batch["pixel_values"], expected, rtol=0, atol=1e-5)


def test_more_tiles_may_be_allowed() -> None:
    batch = tiled(max_tiles=16)(images=[picture(137, 183)], text="<image>", return_tensors="pt")
    assert len(batch["pixel_values"]) == 3 * 4 + 1
    assert batch["input_ids"].shape == (1, token_count((3, 4), TOKENS))


def test_the_prompt_tells_tiles_apart_by_ordinary_text() -> None:
    processor = tiled()
    batch = processor(images=[picture(137, 183)], text="a <image> b", return_tensors="pt")
    ids = batch["input_ids"][0]
    assert len(ids) == 2 + token_count((2, 3), TOKENS)
    words = processor.tokenizer.decode(ids[ids != processor.image_token_id]).split()
    assert words == ["a", ",", ",", ";", ",", ",", ";", ";", "b"]
    runs = (ids == processor.image_token_id).int().diff().nonzero().flatten()
    assert (runs[1::2] - runs[::2]).tolist() == [TOKENS] * 7


def test_another_budget_goes_for_every_tile() -> None:
    processor = tiled()
    batch = processor(images=[picture(192, 96)], text="<image>", visual_tokens=4, return_tensors="pt")
    assert int((batch["input_ids"] == processor.image_token_id).sum()) == 3 * 4


def test_without_tiles_nothing_changes() -> None:
    batch = tiled(max_tiles=None)(images=[picture(137, 183)], text="<image>", return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 96, 96)
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
    assert batch["input_ids"].shape == (1, TOKENS)


def test_prompts_without_pictures_stay_as_they_are() -> None:
    batch = tiled()(text=["a", "b"], return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}


def encode(model: QMoPForConditionalGeneration, batch: Any) -> Any:
    names = ("pixel_values", "query_input_ids", "query_attention_mask", "image_rows", "overview_tiles")
    return model.get_image_features(**{name: batch[name] for name in names if name in batch}).compressed


def test_the_overview_weights_the_branches_of_all_tiles_of_a_picture(model: QMoPForConditionalGeneration) -> None:
    batch = mixed(tiled())
    weights = encode(model, batch).branch_weights_BS
    for first, overview in ((0, 6), (7, 7), (8, 10)):
        assert torch.equal(weights[first : overview + 1], weights[overview].expand(overview + 1 - first, -1))
    assert not torch.allclose(weights[6], weights[7], atol=1e-4)
    del batch["overview_tiles"]
    alone = encode(model, batch).branch_weights_BS  # every tile by its own summary
    torch.testing.assert_close(alone[[6, 7, 10]], weights[[6, 7, 10]], rtol=0, atol=1e-6)
    assert not torch.allclose(alone[0], weights[0], atol=1e-4)


def test_tiles_are_compressed_one_by_one(model: QMoPForConditionalGeneration) -> None:
    batch = mixed(tiled())
    together = encode(model, batch).tokens_BMC
    changed = {**batch, "pixel_values": batch["pixel_values"].clone()}
    changed["pixel_values"][2] += 1.0
    differs = (encode(model, changed).tokens_BMC - together).abs().amax(dim=(1, 2)) > 1e-5
    assert differs.nonzero().flatten().tolist() == [2]


def test_a_batch_equals_its_rows(model: QMoPForConditionalGeneration) -> None:
    processor = tiled()
    together = mixed(processor)
    logits = model(**together).logits
    single = processor(
        images=[picture(192, 96, 2)], text=["<image> is it red ?"], query=[QUESTIONS[1]], return_tensors="pt"
    )
    length = single["input_ids"].shape[1]
    torch.testing.assert_close(logits[1, -length:], model(**single).logits[0], rtol=0, atol=1e-4)


def test_generate_reads_tiles(model: QMoPForConditionalGeneration) -> None:
    processor = tiled()
    batch = mixed(processor)
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    written = model.generate(**batch, **settings)
    assert written.shape == (2, batch["input_ids"].shape[1] + 3)
    assert torch.equal(written[:, :-3], batch["input_ids"])
    uncached = model.generate(**mixed(processor), **settings, use_cache=False)
    assert torch.equal(written, uncached)
    single = processor(
        images=[picture(192, 96, 2)], text=["<image> is it red ?"], query=[QUESTIONS[1]], return_tensors="pt"
    )
    assert torch.equal(model.generate(**single, **settings)[0, -3:], written[1, -3:])


def test_methods_that_keep_fewer_tokens_keep_the_separators() -> None:
    torch.manual_seed(0)
    model = tiny_model("recoverable", TOKENS)
    processor = tiled()
    batch = mixed(processor)
    counts = encode(model, batch).counts_B
    assert len(counts) == 11
    assert (counts < TOKENS).any()
    logits = model(**batch).logits
    words = (batch["input_ids"] != processor.image_token_id) & batch["attention_mask"].bool()
    longest = max(int(words[0].sum() + counts[:8].sum()), int(words[1].sum() + counts[8:].sum()))
    assert logits.shape[1] == longest


def test_is_written_and_read_back(tmp_path: Path) -> None:
    tiny_config("qmop", TOKENS).save_pretrained(tmp_path)
    tiled(max_tiles=16).save_pretrained(tmp_path)
    again = QMoPProcessor.from_pretrained(tmp_path)
    assert (again.max_tiles, again.tile_separators) == (16, [",", ";"])
    assert QMoPProcessor.for_config(tiny_config("qmop", 9), again).max_tiles == 16


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("max_tiles", 0, "max_tiles is 0, but a picture has one tile at least"),
        ("tile_separators", [","], "tile_separators is .*give the text between tiles"),
        ("tile_separators", ["<image>", ";"], "tile_separators is .*give the text between tiles"),
    ],
)
def test_wrong_settings_are_refused(option: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiled(**{option: value})


def side(build: Callable[..., Any], **fields: Any) -> int:
    return tile_side(build(**fields))


def test_the_side_of_a_tile_is_that_of_the_pictures_that_the_tower_knows() -> None:
    assert side(CLIPImageProcessorPil, size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}) == 336
    assert side(CLIPImageProcessorPil, size={"height": 64, "width": 64}, do_center_crop=False) == 64
    assert side(SiglipImageProcessorPil, size={"height": 384, "width": 384}) == 384
    for size in ({"shortest_edge": 336}, {"height": 10, "width": 20}):
        with pytest.raises(ValueError, match="tiles are squares of one size"):
            side(CLIPImageProcessorPil, size=size, do_center_crop=False)


@pytest.mark.parametrize("family", [CLIPImageProcessorPil, LlavaImageProcessorPil])
def test_pictures_are_not_brought_to_one_shape_before_they_are_cut(family: Callable[..., Any]) -> None:
    square: dict[str, Any] = {"size": {"shortest_edge": 96}, "crop_size": {"height": 96, "width": 96}}
    if family is LlavaImageProcessorPil:
        square["do_pad"] = True  # to a square, as LLaVA-1.5 does
    assert tile_pictures(family(**square), picture(137, 183), 9).grids == [(2, 3)]


def test_siglips_processor_makes_tiles_too() -> None:
    cut = tile_pictures(SiglipImageProcessorPil(size={"height": 32, "width": 32}), picture(64, 32), 4)
    assert cut.grids == [(2, 1)]
    assert cut.pixels_BCHW.shape == (3, 3, 32, 32)
    assert cut.overview_tiles.tolist() == [2, 2, 2]
