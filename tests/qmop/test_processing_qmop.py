from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from qmop.pixels import to_rgb
from qmop.processing_qmop import QMoPProcessor, question_length
from qmop.tiny.assemble import tiny_config, tiny_processor

Pictures = Callable[[int], list[Image.Image]]


@pytest.fixture(scope="module")
def processor() -> QMoPProcessor:
    return tiny_processor(16)


def test_one_placeholder_becomes_as_many_as_there_are_visual_tokens(
    processor: QMoPProcessor, pictures: Pictures
) -> None:
    batch = processor(images=pictures(1), text="<user> <image> is it red ? <assistant>", return_tensors="pt")
    assert (batch["input_ids"] == processor.image_token_id).sum() == 16
    assert batch["pixel_values"].shape == (1, 3, 96, 96)
    assert "query_input_ids" not in batch
    assert "image_rows" not in batch


def test_the_text_around_the_picture_is_kept(processor: QMoPProcessor, pictures: Pictures) -> None:
    ids = processor(images=pictures(1), text="is it <image> red ?", return_tensors="pt")["input_ids"][0]
    assert processor.tokenizer.decode(ids[ids != processor.image_token_id]) == "is it red ?"
    assert (ids == processor.image_token_id).nonzero().flatten().tolist() == list(range(2, 18))


def test_questions_go_to_the_text_tower_with_begin_and_end(processor: QMoPProcessor, pictures: Pictures) -> None:
    asked = ["is it red ?", "how many blue objects ?"]
    batch = processor(images=pictures(2), text=["<image> a"] * 2, query=asked, padding=True, return_tensors="pt")
    ids, mask = batch["query_input_ids"], batch["query_attention_mask"]
    assert mask.sum(1).tolist() == [4 + 2, 5 + 2]
    words = processor.query_tokenizer
    for row, question in enumerate(asked):
        real = ids[row][mask[row].bool()]
        assert (real[0], real[-1]) == (words.bos_token_id, words.eos_token_id)
        assert words.decode(real[1:-1]) == question


def test_long_questions_are_cut_and_still_end(processor: QMoPProcessor, pictures: Pictures) -> None:
    batch = processor(images=pictures(1), text="<image>", query="red " * 300, return_tensors="pt")
    assert batch["query_input_ids"].shape == (1, 77)
    assert batch["query_input_ids"][0, -1] == processor.query_tokenizer.eos_token_id


def test_prompts_with_several_or_no_pictures_get_rows(processor: QMoPProcessor, pictures: Pictures) -> None:
    texts = ["<image> a <image> b", "no picture", "c <image>"]
    batch = processor(images=pictures(3), text=texts, padding=True, return_tensors="pt")
    assert batch["image_rows"].tolist() == [0, 0, 2]
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [32, 0, 16]
    assert texts == ["<image> a <image> b", "no picture", "c <image>"]  # the caller's list is left alone


def test_one_picture_per_prompt_or_none_at_all_needs_no_rows(processor: QMoPProcessor, pictures: Pictures) -> None:
    one_each = processor(images=pictures(2), text=["<image> a", "<image> b"], padding=True, return_tensors="pt")
    assert "image_rows" not in one_each
    words_only = processor(text=["a", "b"], return_tensors="pt")
    assert sorted(words_only) == ["attention_mask", "input_ids"]


def test_padding_is_on_the_left_for_prompts(processor: QMoPProcessor, pictures: Pictures) -> None:
    batch = processor(images=pictures(2), text=["<image> a", "<image> a red circle"], padding=True, return_tensors="pt")
    assert batch["attention_mask"][0].tolist() == [0, 0] + [1] * 17
    assert batch["input_ids"][0, :2].tolist() == [processor.tokenizer.pad_token_id] * 2


@pytest.mark.parametrize("query", [["one", "two", "three"], "one", []])
def test_a_wrong_number_of_questions_is_refused(
    processor: QMoPProcessor, pictures: Pictures, query: str | list[str]
) -> None:
    count = 1 if isinstance(query, str) else len(query)
    with pytest.raises(ValueError, match=f"query has {count} questions for 2 prompts: pass one per prompt"):
        processor(images=pictures(2), text=["<image>", "<image>"], query=query, padding=True, return_tensors="pt")


def test_pixels_are_scaled_as_the_tower_was_trained(processor: QMoPProcessor) -> None:
    picture = Image.fromarray(np.full((96, 96, 3), (0, 255, 127), dtype=np.uint8))
    pixels = processor(images=[picture], text="<image>", return_tensors="pt")["pixel_values"][0]
    expected = torch.tensor([-2.0, 2.0, (127 / 255 - 0.5) / 0.25])
    torch.testing.assert_close(pixels.mean(dim=(1, 2)), expected, rtol=0, atol=1e-5)


def test_another_compressor_changes_the_count_and_nothing_else(processor: QMoPProcessor) -> None:
    aligning = QMoPProcessor.for_config(tiny_config("qmop", 9, stage=1), processor)
    assert aligning.visual_tokens == 27
    assert aligning.tokenizer is processor.tokenizer
    assert aligning.query_tokenizer is processor.query_tokenizer
    assert aligning.chat_template == processor.chat_template


def test_the_names_of_all_inputs_are_declared(processor: QMoPProcessor, pictures: Pictures) -> None:
    texts = ["<image> a <image>", "b"]
    batch = processor(images=pictures(2), text=texts, query=["a", "b"], padding=True, return_tensors="pt")
    assert set(batch) <= set(processor.model_input_names)
    assert {"query_input_ids", "query_attention_mask", "image_rows", "pixel_values"} <= set(batch)


def test_is_written_and_read_back(processor: QMoPProcessor, pictures: Pictures, tmp_path: Path) -> None:
    tiny_config("qmop", 16).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for again in (QMoPProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(again, QMoPProcessor)
        assert again.visual_tokens == 16
        inputs = {"images": pictures(1), "text": "<user> <image> is it red ?", "query": "is it red ?"}
        first, second = (p(**inputs, return_tensors="pt") for p in (processor, again))
        assert list(first) == list(second)
        assert all(torch.equal(first[name], second[name]) for name in first)
        turns = [{"role": "user", "content": "is it red ?"}]
        assert again.apply_chat_template(turns, tokenize=False) == processor.apply_chat_template(turns, tokenize=False)


def talk(picture: Image.Image) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "is it red ?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": [{"type": "text", "text": "how many blue objects ?"}]},
    ]


@pytest.mark.parametrize(("policy", "question"), [("latest", "how many blue objects ?"), ("sticky", "is it red ?")])
def test_the_question_is_derived_from_the_conversation(
    processor: QMoPProcessor, pictures: Pictures, policy: Any, question: str
) -> None:
    own = QMoPProcessor.for_config(tiny_config("qmop", 16), processor)
    own.query_policy = policy
    settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    batch = own.apply_chat_template(talk(pictures(1)[0]), **settings)
    expected = own.query_inputs([question])
    assert torch.equal(batch["query_input_ids"], expected["query_input_ids"])
    assert (batch["input_ids"] == own.image_token_id).sum() == 16
    other = own.apply_chat_template(talk(pictures(1)[0]), query=["is it big ?"], **settings)
    assert torch.equal(other["query_input_ids"], own.query_inputs(["is it big ?"])["query_input_ids"])


def test_several_conversations_have_a_question_each(processor: QMoPProcessor, pictures: Pictures) -> None:
    one, two = (talk(picture) for picture in pictures(2))
    settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "processor_kwargs": {"padding": True}}
    batch = processor.apply_chat_template([one, two[:1]], **settings)
    expected = processor.query_inputs(["how many blue objects ?", "is it red ?"])
    assert torch.equal(batch["query_input_ids"], expected["query_input_ids"])
    assert batch["pixel_values"].shape[0] == 2


def test_without_tokenizing_the_prompt_is_text(processor: QMoPProcessor, pictures: Pictures) -> None:
    assert processor.apply_chat_template(talk(pictures(1)[0]), tokenize=False).count("<image>") == 1


def test_another_budget_changes_one_calls_placeholders(processor: QMoPProcessor, pictures: Pictures) -> None:
    text = "<user> <image> a <assistant>"
    batch = processor(images=pictures(1), text=text, visual_tokens=4, return_tensors="pt")
    assert (batch["input_ids"] == processor.image_token_id).sum() == 4
    assert batch["visual_tokens"] == 4
    again = processor(images=pictures(1), text=text, return_tensors="pt")
    assert (again["input_ids"] == processor.image_token_id).sum() == 16


def test_long_questions_may_be_cut_into_segments(processor: QMoPProcessor) -> None:
    own = QMoPProcessor.for_config(tiny_config("qmop", 16), processor)
    own.query_segments = 3
    inputs = own.query_inputs(["red " * 100, "is it red ?", "blue " * 300])
    ids, mask = inputs["query_input_ids"], inputs["query_attention_mask"]
    assert ids.shape == mask.shape == (3, 3, 77)
    assert mask.sum(2).tolist() == [[77, 27, 0], [6, 0, 0], [77, 77, 77]]
    words = own.query_tokenizer
    assert words.decode(ids[0, 1][mask[0, 1].bool()], skip_special_tokens=True) == " ".join(["red"] * 25)


def test_fixed_endings_are_taken_off_the_question(processor: QMoPProcessor) -> None:
    own = QMoPProcessor.for_config(tiny_config("qmop", 16), processor)
    own.query_strip = ["answer with one word ."]
    stripped = own.query_inputs(["is it red ? answer with one word ."])
    assert torch.equal(stripped["query_input_ids"], own.query_inputs(["is it red ?"])["query_input_ids"])


def test_settings_of_the_question_are_kept(processor: QMoPProcessor, tmp_path: Path) -> None:
    own = QMoPProcessor.for_config(tiny_config("qmop", 16), processor)
    own.query_policy, own.query_segments, own.query_strip = "sticky", 2, ["x"]
    own.save_pretrained(tmp_path)
    again = QMoPProcessor.from_pretrained(tmp_path)
    assert (again.query_policy, again.query_segments, again.query_strip) == ("sticky", 2, ["x"])
    for wrong, said in (({"query_policy": "last"}, "query_policy is 'last'"), ({"query_segments": 0}, "choose 1")):
        with pytest.raises(ValueError, match=said):
            QMoPProcessor(own.image_processor, own.tokenizer, own.query_tokenizer, **wrong)


def test_without_a_tokenizer_for_questions_the_language_models_stands_in(
    processor: QMoPProcessor, tmp_path: Path
) -> None:
    own = QMoPProcessor(processor.image_processor, processor.tokenizer, visual_tokens=16)
    own.save_pretrained(tmp_path)
    again = QMoPProcessor.from_pretrained(tmp_path)
    assert again.query_inputs(["is it red ?"])["query_input_ids"].shape == (1, 4)


def test_pictures_are_read_as_a_viewer_shows_them(processor: QMoPProcessor) -> None:
    draw = np.random.default_rng(0)
    clear = Image.fromarray(draw.integers(0, 256, (96, 96, 4), dtype=np.uint8), "RGBA")
    deep = Image.fromarray(draw.integers(0, 2**16, (96, 96)).astype(np.uint16))
    turned = Image.fromarray(draw.integers(0, 256, (96, 96, 3), dtype=np.uint8))
    turned.getexif()[0x0112] = 6

    def pixels(*images: Image.Image) -> torch.Tensor:
        return processor(images=list(images), text="<image>" * len(images), return_tensors="pt")["pixel_values"]

    read = pixels(clear, deep, turned)
    assert torch.equal(read, pixels(to_rgb(clear), to_rgb(deep), turned.transpose(Image.Transpose.ROTATE_270)))
    plain = turned.transpose(Image.Transpose.ROTATE_270)
    assert (read[2] - pixels(plain.transpose(Image.Transpose.ROTATE_90))[0]).abs().max() > 0.5


def test_files_are_read_as_a_viewer_shows_them(processor: QMoPProcessor, tmp_path: Path) -> None:
    Image.new("RGBA", (96, 96), (0, 0, 0, 0)).save(file := tmp_path / "clear.png")
    turn = [{"role": "user", "content": [{"type": "image", "path": str(file)}, {"type": "text", "text": "what ?"}]}]
    told = processor.apply_chat_template(turn, tokenize=True, return_dict=True, return_tensors="pt")
    white = processor(images=Image.new("RGB", (96, 96), "white"), text="<image>", return_tensors="pt")
    assert torch.equal(told["pixel_values"], white["pixel_values"])


@pytest.mark.parametrize("max_tiles", [None, 4])
def test_slivers_are_refused(processor: QMoPProcessor, max_tiles: int | None) -> None:
    own = QMoPProcessor(processor.image_processor, processor.tokenizer, visual_tokens=16, max_tiles=max_tiles)
    with pytest.raises(ValueError, match="a picture has 1 x 20000 pixels, which is narrower than 1 : 50"):
        own(images=Image.new("RGB", (1, 20_000)), text="<image>")


@pytest.mark.parametrize("wrong", [0, -3, 2.5, True, "4"])
def test_a_budget_that_is_no_count_is_refused(processor: QMoPProcessor, pictures: Pictures, wrong: Any) -> None:
    said = f"visual_tokens is {wrong!r}: give a whole number of tokens"
    with pytest.raises(ValueError, match=said):
        processor(images=pictures(1), text="<image>", visual_tokens=wrong)
    with pytest.raises(ValueError, match=said):
        QMoPProcessor(processor.image_processor, processor.tokenizer, visual_tokens=wrong)


def test_a_folder_without_the_tokenizer_of_questions_is_refused(processor: QMoPProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    tiny_config("qmop", 16).save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "query_tokenizer")
    for kind in (QMoPProcessor, AutoProcessor):
        with pytest.raises(ValueError, match="lacks query_tokenizer/, the tokenizer of the text tower"):
            kind.from_pretrained(tmp_path)


def test_the_text_tower_s_length_is_kept(processor: QMoPProcessor, tmp_path: Path) -> None:
    config = tiny_config("qmop", 16)
    assert question_length(config) == 77
    config.query_config.max_position_embeddings = 12
    own = QMoPProcessor.for_config(config, processor)
    own.save_pretrained(tmp_path)
    for told in (own, QMoPProcessor.from_pretrained(tmp_path)):
        assert told.query_inputs(["red " * 300])["query_input_ids"].shape == (1, 12)
    config.query_config = None
    assert question_length(config) is None
    assert QMoPProcessor.for_config(config, own).query_length == 12
