from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration

from qmop.compressors import list_compressors
from qmop.feature_cache import FeatureCache
from qmop.fitting import take_image_inputs
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor
from qmop.tiny.assemble import tiny_model, tiny_processor

Pictures = Callable[[int], list[Image.Image]]
Model = QMoPForConditionalGeneration

METHODS = sorted(list_compressors())
UNGUIDED = [name for name, declaration in list_compressors().items() if not declaration.text_guided]
GUIDED = ["cdpruner", "prune", "qmop", "qmop-elastic", "quecc"]
"""Methods that make something else of each of these questions, before the language model reads them."""
QUESTIONS = ["what colour is the circle ?", "how many red objects ?", "which texture has the background of it ?"]


def lively(model: Model, seed: int = 0) -> Model:
    """Larger random weights, so that pictures, questions and routes make a visible difference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module is not model.lm_head:
                spread = 1.0 / module.in_features**0.5
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * spread)
    return model.requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def models() -> Iterator[Callable[[str], tuple[Model, QMoPProcessor]]]:
    """`models(method)`: model and processor at 16 tokens (144 uncompressed), built once."""
    kept: dict[str, tuple[Model, QMoPProcessor]] = {}

    def get(method: str) -> tuple[Model, QMoPProcessor]:
        if method not in kept:
            torch.manual_seed(1)
            model = lively(tiny_model(method, None if method == "mlp" else 16))
            kept[method] = model, QMoPProcessor.for_config(model.config, tiny_processor())
        return kept[method]

    yield get
    kept.clear()


Models = Callable[[str], tuple[Model, QMoPProcessor]]


def inputs(processor: QMoPProcessor, images: list[Image.Image], texts: list[str], questions: list[str]) -> Any:
    return processor(images=images or None, text=texts, query=questions, padding=True, return_tensors="pt")


def asked(question: str, images: int = 1) -> str:
    return f"<user> {'<image> ' * images}{question} <assistant>"


def alone(models: Models, method: str, images: list[Image.Image], question: str) -> Tensor:
    """Logits of the last position of one prompt by itself."""
    model, processor = models(method)
    batch = inputs(processor, images, [asked(question, len(images))], [question])
    return model(**batch).logits[0, -1]


def encoded(model: Model, batch: Any) -> Any:
    """The pictures of a batch, as the model encodes them."""
    return model.get_image_features(**take_image_inputs(dict(batch)))


@pytest.fixture(scope="module")
def stock() -> tuple[Model, LlavaForConditionalGeneration]:
    """Our uncompressed model and transformers' own LLaVA with the same weights."""
    torch.manual_seed(2)
    ours = lively(tiny_model())
    config = LlavaConfig(
        vision_config=ours.config.vision_config,
        text_config=ours.config.text_config,
        image_token_index=ours.config.image_token_id,
        tie_word_embeddings=True,
    )
    theirs = LlavaForConditionalGeneration(config).eval()
    weights = {
        name.replace("multi_modal_projector.connector.", "multi_modal_projector."): value
        for name, value in ours.state_dict().items()
        if "query_encoder" not in name
    }
    theirs.load_state_dict(weights)
    theirs.generation_config = copy.deepcopy(ours.generation_config)
    return ours, theirs


def test_uncompressed_logits_are_stock_llavas(
    stock: tuple[Model, LlavaForConditionalGeneration], pictures: Pictures
) -> None:
    ours, theirs = stock
    batch = tiny_processor()(
        images=pictures(2), text=[asked(q) for q in QUESTIONS[:2]], padding=True, return_tensors="pt"
    )
    logits = ours(**batch).logits
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, theirs(**batch).logits, rtol=0, atol=1e-5)
    batch["pixel_values"] = batch["pixel_values"].flip(0)
    assert (ours(**batch).logits - logits).abs().max() > 1e-2  # the pictures matter


def test_uncompressed_generation_is_stock_llavas(
    stock: tuple[Model, LlavaForConditionalGeneration], pictures: Pictures
) -> None:
    batch = tiny_processor()(
        images=pictures(2), text=[asked(q) for q in QUESTIONS[:2]], padding=True, return_tensors="pt"
    )
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    first, second = (model.generate(**batch, **settings) for model in stock)
    assert torch.equal(first, second)
    assert first.shape[1] == batch["input_ids"].shape[1] + 8


@pytest.mark.parametrize("method", METHODS)
def test_is_written_and_read_back_bit_by_bit(models: Models, pictures: Pictures, tmp_path: Path, method: str) -> None:
    model, processor = models(method)
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = Model.from_pretrained(tmp_path).eval()
    before, after = model.state_dict(), again.state_dict()
    assert list(before) == list(after)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    batch = inputs(processor, pictures(2), [asked(q) for q in QUESTIONS[:2]], QUESTIONS[:2])
    assert torch.equal(model(**batch).logits, again(**batch).logits)  # buffers outside the checkpoint included


@pytest.mark.parametrize("method", METHODS)
def test_generation_with_and_without_a_cache_agrees(models: Models, pictures: Pictures, method: str) -> None:
    model, processor = models(method)
    batch = inputs(processor, pictures(2), [asked(q) for q in QUESTIONS[:2]], QUESTIONS[:2])
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    settings["suppress_tokens"] = [model.config.image_token_id]  # random weights might write one
    cached = model.generate(**batch, **settings, use_cache=True)
    assert torch.equal(cached, model.generate(**batch, **settings, use_cache=False))


@pytest.mark.parametrize("method", [*GUIDED, "window_pool"])
def test_a_padded_batch_equals_its_rows(models: Models, pictures: Pictures, method: str) -> None:
    model, processor = models(method)
    batch = inputs(processor, pictures(3), [asked(q) for q in QUESTIONS], QUESTIONS)
    assert batch["attention_mask"].sum(1).unique().numel() == 3
    together = model(**batch).logits[:, -1]
    for row, (picture, question) in enumerate(zip(pictures(3), QUESTIONS, strict=True)):
        torch.testing.assert_close(together[row], alone(models, method, [picture], question), rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", GUIDED)
def test_pictures_of_one_prompt_share_its_question(models: Models, pictures: Pictures, method: str) -> None:
    model, processor = models(method)
    images, texts = pictures(3), [asked(QUESTIONS[0], 2), asked(QUESTIONS[1])]
    batch = inputs(processor, images, texts, QUESTIONS[:2])
    assert batch["image_rows"].tolist() == [0, 0, 1]
    together = model(**batch).logits[:, -1]
    torch.testing.assert_close(together[0], alone(models, method, images[:2], QUESTIONS[0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(together[1], alone(models, method, images[2:], QUESTIONS[1]), rtol=0, atol=1e-4)
    kept = encoded(model, batch).compressed.tokens_BMC
    batch["image_rows"] = torch.tensor([0, 1, 1])
    changed = (encoded(model, batch).compressed.tokens_BMC != kept).flatten(1).any(1)
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("method", GUIDED)
def test_rows_without_a_picture_stand_in_a_batch(models: Models, pictures: Pictures, method: str) -> None:
    model, processor = models(method)
    texts = [asked(QUESTIONS[0], 0), asked(QUESTIONS[1])]
    batch = inputs(processor, pictures(1), texts, QUESTIONS[:2])
    assert batch["image_rows"].tolist() == [1]
    together = model(**batch).logits[:, -1]
    torch.testing.assert_close(together[0], alone(models, method, [], QUESTIONS[0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(together[1], alone(models, method, pictures(1), QUESTIONS[1]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", [*UNGUIDED, *GUIDED])
def test_the_question_reaches_guided_methods_and_no_others(models: Models, pictures: Pictures, method: str) -> None:
    model, processor = models(method)
    batch = inputs(processor, pictures(1), [asked("is it red ?")], QUESTIONS[:1])
    other = inputs(processor, pictures(1), [asked("is it red ?")], QUESTIONS[1:2])
    difference = (model(**batch).logits - model(**other).logits).abs().max().item()
    assert (difference > 1e-4) == (method in GUIDED)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_stays_near_full(models: Models, pictures: Pictures, method: str) -> None:
    model, processor = models(method)
    batch = inputs(processor, pictures(1), [asked(QUESTIONS[0])], QUESTIONS[:1])
    half = copy.deepcopy(model).bfloat16()
    told, expected = half(**batch).logits, model(**batch).logits
    assert told.dtype == torch.bfloat16
    assert told.isfinite().all()
    if encoded(model, batch).compressed.kept_BM is None:  # where scores nearly tie, half precision keeps another patch
        assert nn.functional.cosine_similarity(told.float(), expected, dim=-1).min() > 0.99


@pytest.mark.parametrize("method", ["average_pool", "recoverable", "fastv"])
def test_too_many_placeholders_are_named_by_forward_and_generate_alike(
    models: Models, pictures: Pictures, method: str
) -> None:
    model, processor = models(method)
    most = processor.visual_tokens
    other = QMoPProcessor.for_config(model.config, processor)
    other.visual_tokens = most + 9
    batch = inputs(other, pictures(2), [asked(q) for q in QUESTIONS[:2]], QUESTIONS[:2])
    said = f"have {most + 9} placeholders per image, but the model keeps at most {most} tokens"
    for call in (model.__call__, model.generate, model.model.__call__):
        with pytest.raises(ValueError, match=said):
            call(**batch)


@pytest.mark.parametrize("method", ["average_pool", "recoverable", "fastv"])
def test_the_model_without_its_head_reads_the_same_rows(models: Models, pictures: Pictures, method: str) -> None:
    model, processor = models(method)
    batch = inputs(processor, pictures(2), [asked(q) for q in QUESTIONS[:2]], QUESTIONS[:2])
    expected = model(**batch).logits
    states = model.model(**batch).last_hidden_state
    assert (states.shape[1] < batch["input_ids"].shape[1]) == (method != "average_pool")
    assert torch.equal(model.lm_head(states), expected)


def test_auto_classes_know_it(models: Models, tmp_path: Path) -> None:
    models("average_pool")[0].save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(again, Model)
    assert again.model.query_encoder is not None
    assert again.config.compressor == "average_pool"
    assert again.model.query_encoder.text_tower.config.hidden_size == 128


@pytest.mark.parametrize("method", ["window_pool", "resampler"])
def test_the_identity_start_survives_construction(method: str) -> None:
    compressor: Any = tiny_model(method, 16, value_init="identity").model.multi_modal_projector.compressor
    attention = compressor.attention
    for linear in (attention.value, attention.output):
        assert torch.equal(linear.weight, torch.eye(128))
        assert not linear.bias.any()
    assert attention.key.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_the_identity_start_survives_inside_the_mixture() -> None:
    identity = {"value_init": "identity"}
    model = tiny_model("qmop", 16, branches={"window_pool": identity, "resampler": identity})
    branches: Any = model.model.multi_modal_projector.compressor.branches
    for name in ("window_pool", "resampler"):
        assert torch.equal(branches[name].attention.value.weight, torch.eye(128))


def test_encoded_pictures_tell_what_was_kept_and_may_be_handed_on(models: Models, pictures: Pictures) -> None:
    model, processor = models("qmop")
    batch = inputs(processor, pictures(2), [asked(q) for q in QUESTIONS[:2]], QUESTIONS[:2])
    images = encoded(model, batch)
    words = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(model(**words, mm_encoder_outputs={"image": images}).logits, model(**batch).logits)
    kept = images.compressed
    assert kept.tokens_BMC.shape == (2, 16, 160)
    torch.testing.assert_close(kept.branch_weights_BS.sum(1), torch.ones(2))
    assert (kept.branch_weights_BS == 0).sum(1).tolist() == [1, 1]


def test_gradients_reach_the_projector_through_the_language_model(pictures: Pictures) -> None:
    torch.manual_seed(4)
    model, processor = lively(tiny_model("qmop", 16)).train(), tiny_processor(16)
    model.model.multi_modal_projector.requires_grad_()
    batch = inputs(processor, pictures(2), [asked(q) for q in QUESTIONS[:2]], QUESTIONS[:2])
    model(**batch, labels=batch["input_ids"]).loss.backward()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if p.grad is None or not p.grad.any()] == []
    assert all(".multi_modal_projector." in name for name, _ in trained)


def test_a_missing_question_is_refused(models: Models, pictures: Pictures) -> None:
    model, processor = models("qmop")
    batch = processor(images=pictures(1), text=asked("a"), return_tensors="pt")
    with pytest.raises(ValueError, match="query is missing"):
        model(**batch)


def test_questions_that_do_not_match_the_pictures_are_refused(models: Models, pictures: Pictures) -> None:
    model, processor = models("qmop")
    batch = inputs(processor, pictures(2), [asked("a", 2)], ["a"])
    del batch["image_rows"]
    with pytest.raises(ValueError, match="there are 2 images but 1 questions: pass image_rows"):
        model(**batch)


def test_a_model_without_a_text_tower_says_so(models: Models, pictures: Pictures) -> None:
    model, processor = models("qmop")
    bare = copy.deepcopy(model)
    bare.model.query_encoder = None
    with pytest.raises(ValueError, match="no text tower"):
        bare(**inputs(processor, pictures(1), [asked("a")], ["a"]))


@pytest.mark.parametrize("method", ["qmop", "average_pool", "quecc", "recoverable"])
def test_pictures_seen_before_are_remembered(models: Models, pictures: Pictures, method: str) -> None:
    model, processor = models(method)
    first = inputs(processor, pictures(2), [asked(q) for q in QUESTIONS[:2]], QUESTIONS[:2])
    other = inputs(processor, pictures(2), [asked(q) for q in QUESTIONS[1:]], QUESTIONS[1:])
    plain = [encoded(model, batch).pooler_output for batch in (first, other)]
    passes: list[int] = []
    hook = model.model.vision_tower.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    model.model.feature_cache = FeatureCache(64 << 20)
    try:
        with torch.no_grad():
            found = [encoded(model, batch).pooler_output for batch in (first, first, other)]
    finally:
        model.model.feature_cache = None
        hook.remove()
    assert passes == [2]  # the tower never sees a picture twice, whatever is asked
    for told, expected in zip(found, [plain[0], plain[0], plain[1]], strict=True):
        for one, two in zip(told, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_a_cache_is_bounded_and_left_alone_in_training(models: Models, pictures: Pictures) -> None:
    model, processor = models("qmop")
    batch = inputs(processor, pictures(2), [asked(q) for q in QUESTIONS[:2]], QUESTIONS[:2])
    model.model.feature_cache = FeatureCache(1000)
    try:
        encoded(model, batch)  # gradients are on
        assert model.model.feature_cache.counters.misses == 0
        with torch.no_grad():
            encoded(model, batch)
        assert model.model.feature_cache.counters.refused > 0
        assert model.model.feature_cache.counters.held_bytes <= 1000
    finally:
        model.model.feature_cache = None
