from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from qmop.features import CompressedTokens
from qmop.fitting import fit_words, pad_id, take_image_inputs
from qmop.modeling_qmop import ImageOutput, QMoPForConditionalGeneration
from qmop.placeholders import IGNORED
from qmop.tiny.assemble import tiny_config, tiny_model, tiny_processor

Pictures = Callable[[int], list[Image.Image]]
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
COUNTS = [3, 16, 7]


@pytest.fixture(scope="module")
def model() -> QMoPForConditionalGeneration:
    """Keeps another number of tokens of each image: a method with a variable count."""
    torch.manual_seed(0)
    model = tiny_model("average_pool", 16)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module is not model.lm_head:
                module.weight.normal_(std=module.in_features**-0.5)
    inner = model.model.multi_modal_projector

    def trimmed(*args: Any, **kwargs: Any) -> CompressedTokens:
        kept = type(inner).forward(inner, *args, **kwargs)
        images = len(kept.tokens_BMC)
        kept.mask_BM = torch.arange(16) < torch.tensor(COUNTS[:images])[:, None]
        return kept

    inner.forward = trimmed
    return model.requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def batch(pictures: Pictures) -> Any:
    """Two pictures, none, one; rows of different length."""
    texts = ["<user> <image> a <image> red ? <assistant>", "<user> which ? <assistant>", "<user> <image> <assistant>"]
    return tiny_processor(16)(images=pictures(3), text=texts, padding=True, return_tensors="pt")


def by_hand(model: QMoPForConditionalGeneration, batch: Any) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Each row's ids without padding and surplus, and the tokens of its images."""
    image, tokens = model.config.image_token_id, model.get_image_features(batch["pixel_values"]).pooler_output
    rows, start = [], 0
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        runs, kept, place = [], [], 0
        for one in ids[mask.bool()].tolist():
            if one == image:
                which, slot = start + place // 16, place % 16
                place += 1
                if slot >= COUNTS[which]:
                    continue
            runs.append(one)
        kept = tokens[start : start + place // 16]
        start += place // 16
        rows.append((torch.tensor([runs]), kept))
    return rows


def images_of(kept: list[torch.Tensor]) -> dict[str, Any]:
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=kept)}} if kept else {}


def test_forward_reads_the_shorter_rows(model: QMoPForConditionalGeneration, batch: Any) -> None:
    together = model(**batch).logits
    rows = by_hand(model, batch)
    assert together.shape[1] == max(ids.shape[1] for ids, _ in rows) < batch["input_ids"].shape[1]
    for row, (ids, kept) in enumerate(rows):
        alone = model(input_ids=ids, **images_of(kept)).logits[0]
        torch.testing.assert_close(together[row, -len(alone) :], alone, rtol=0, atol=1e-5)


def test_the_loss_is_that_of_the_shorter_rows(model: QMoPForConditionalGeneration, batch: Any) -> None:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    labels = torch.where(mask.bool() & (ids != model.config.image_token_id), ids, IGNORED)
    labels[torch.arange(3), mask.argmax(1)] = IGNORED  # nothing stands before a row's first token to tell it
    loss = model(**batch, labels=labels).loss
    total, count = 0.0, 0
    for ids_row, kept in by_hand(model, batch):
        logits = model(input_ids=ids_row, **images_of(kept)).logits[0, :-1]
        targets = torch.where(ids_row[0] == model.config.image_token_id, IGNORED, ids_row[0])[1:]
        total += nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum").item()
        count += int((targets != IGNORED).sum())
    assert loss.item() == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_continues_the_callers_rows(
    model: QMoPForConditionalGeneration, batch: Any, *, use_cache: bool
) -> None:
    written = model.generate(**batch, **GREEDY, use_cache=use_cache)
    length = batch["input_ids"].shape[1]
    assert torch.equal(written[:, :length], batch["input_ids"])
    assert written.shape[1] == length + 5
    for row, (ids, kept) in enumerate(by_hand(model, batch)):
        alone = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **images_of(kept), **GREEDY)
        assert torch.equal(written[row, length:], alone[0, ids.shape[1] :])


@pytest.mark.parametrize(
    "settings",
    [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}, {"num_beams": 4, "num_return_sequences": 2}],
)
def test_several_sequences_per_row(model: QMoPForConditionalGeneration, batch: Any, settings: dict[str, Any]) -> None:
    copies, length = settings.get("num_return_sequences", 1), batch["input_ids"].shape[1]
    written = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True, **settings)
    assert written.sequences.shape == (3 * copies, length + 4)
    assert torch.equal(written.sequences[:, :length], batch["input_ids"].repeat_interleave(copies, dim=0))


def test_beams_equal_those_of_a_row_alone(model: QMoPForConditionalGeneration, batch: Any) -> None:
    settings = {"num_beams": 3, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    length = batch["input_ids"].shape[1]
    written = model.generate(**batch, **settings)
    for row, (ids, kept) in enumerate(by_hand(model, batch)):
        alone = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **images_of(kept), **settings)
        assert torch.equal(written[row, length:], alone[0, ids.shape[1] :])


@pytest.mark.parametrize("place", ["argument", "configuration", "model"])
def test_a_longest_length_counts_the_callers_rows(model: QMoPForConditionalGeneration, batch: Any, place: str) -> None:
    length, defaults = batch["input_ids"].shape[1], model.generation_config
    limits = {"max_length": length + 2, "min_length": length + 2}
    settings = {
        "argument": {**limits, "do_sample": False},
        "configuration": {"generation_config": GenerationConfig(**limits)},
        "model": {"do_sample": False},
    }
    if place == "model":
        model.generation_config = GenerationConfig(**limits)
    try:
        assert model.generate(**batch, **settings[place]).shape[1] == length + 2
        if place == "model":  # lengths of the new part go before those of the whole
            assert model.generate(**batch, max_new_tokens=4, min_new_tokens=4).shape[1] == length + 4
            own = GenerationConfig(do_sample=False)
            assert model.generate(**batch, generation_config=own).shape[1] == length + 2
            assert (own.max_length, model.generation_config.max_length) == (None, length + 2)
    finally:
        model.generation_config = defaults


def test_a_least_length_below_the_dropped_placeholders_is_none(model: QMoPForConditionalGeneration, batch: Any) -> None:
    length = batch["input_ids"].shape[1]
    assert model.generate(**batch, min_length=2, max_new_tokens=3, do_sample=False).shape[1] == length + 3


def test_positions_of_the_callers_rows_are_counted_anew(model: QMoPForConditionalGeneration, batch: Any) -> None:
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    expected = model.generate(**batch, **GREEDY)
    assert torch.equal(model.generate(**batch, **GREEDY, position_ids=positions), expected)


def test_encoded_pictures_are_left_as_they_were(model: QMoPForConditionalGeneration, batch: Any) -> None:
    words = dict(batch)
    images: ImageOutput = model.get_image_features(**take_image_inputs(words))
    before = list(images.pooler_output)
    first = model.generate(**words, mm_encoder_outputs={"image": images}, num_beams=2, max_new_tokens=3)
    assert [a is b for a, b in zip(before, images.pooler_output, strict=True)] == [True] * 3
    assert torch.equal(first, model.generate(**batch, num_beams=2, max_new_tokens=3))


def test_rows_that_fit_are_not_touched(model: QMoPForConditionalGeneration) -> None:
    words = {"input_ids": torch.tensor([[1, model.config.image_token_id, 2]]), "other": 1}
    kept = CompressedTokens(tokens_BMC=torch.zeros(1, 1, 4))
    assert fit_words(model.config, words, kept, positions=True) is words


@pytest.mark.parametrize(("pad", "image", "expected"), [(None, 5, 0), (None, 0, 1), (3, 5, 3), (5, 5, 0), (-1, 5, 0)])
def test_padding_is_never_a_placeholder(pad: int | None, image: int, expected: int) -> None:
    config = tiny_config()
    config.text_config.pad_token_id, config.image_token_index = pad, image
    assert pad_id(config) == expected
