from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    DynamicCache,
    GenerationConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    TextStreamer,
)

from qmop.compressors import list_compressors
from qmop.encoders import QueryEncoder
from qmop.feature_cache import FeatureCache
from qmop.placeholders import IGNORED
from qmop.surgery import Compression, compress, compression_of
from qmop.tiny.assemble import tiny_model, tiny_processor
from qmop.tiny.configs import query_config, vision_config
from qmop.tiny.tokenizer import query_tokenizer
from tests.fixtures.stock_llava import PATCHES, enliven, mixed_batch, single, stock_llava, stock_processor

DECLARED = list_compressors()
FREE = sorted(name for name, told in DECLARED.items() if not told.trained)
PLAIN = sorted(name for name in FREE if not DECLARED[name].reads & {"query", "text_space"})
GUIDED = sorted(set(FREE) - set(PLAIN))
BUDGETS = {"mlp": PATCHES, "prumerge": None, "recoverable": None}
QUESTIONS = ["what colour is the circle ?", "how many red objects are there ?", "what ?"]

Attach = Callable[..., Compression]


@pytest.fixture(scope="module")
def processor() -> Any:
    return stock_processor()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that the tower came from, and its tokenizer."""
    words, folder = query_tokenizer(), tmp_path_factory.mktemp("clip")
    text = query_config(words).to_dict()
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision_config().to_dict(), projection_dim=128))
    enliven(model, 1)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def model() -> Any:
    return stock_llava()


def attached(model: Any, name: str, clip: Path, **options: Any) -> Compression:
    """A method with a budget that suits it."""
    return compress(model, name, BUDGETS.get(name, 16), text_encoder=clip if name in GUIDED else None, **options)


def fingerprint(model: Any) -> list[tuple[Any, ...]]:
    """Everything by which attaching could leave a trace: attributes and hooks of all modules, names of weights."""
    found: list[tuple[Any, ...]] = []
    for name, module in model.named_modules():
        hooks = {key: list(value) for key, value in vars(module).items() if "hooks" in key and isinstance(value, dict)}
        found.append((name, sorted(vars(module)), hooks, type(module).forward))
    return [*found, tuple(model.state_dict())]


@pytest.mark.parametrize("name", FREE)
@torch.no_grad()
def test_nothing_is_left_after_detaching(model: Any, processor: Any, clip: Path, name: str) -> None:
    batch = mixed_batch(processor)
    logits, told = model(**batch).logits, model.generate(**batch, max_new_tokens=3)
    before, kinds = fingerprint(model), dict(vars(LlavaForConditionalGeneration))
    handle = attached(model, name, clip)
    assert fingerprint(model) != before
    assert tuple(model.state_dict()) == before[-1]
    batch |= (asked := handle.ask(QUESTIONS))
    changed = model(**batch).logits
    model.generate(**batch, max_new_tokens=3)
    assert changed.shape != logits.shape or name == "mlp"
    handle.detach()
    handle.detach()
    for key in asked:
        del batch[key]
    assert fingerprint(model) == before
    assert dict(vars(LlavaForConditionalGeneration)) == kinds
    assert torch.equal(model(**batch).logits, logits)
    assert torch.equal(model.generate(**batch, max_new_tokens=3), told)


@pytest.mark.parametrize("name", [name for name in FREE if name != "fastv"])
@torch.no_grad()
def test_a_stock_model_answers_as_one_of_ours_with_the_same_weights(
    model: Any, processor: Any, clip: Path, name: str
) -> None:
    batch = mixed_batch(processor)
    handle = attached(model, name, clip)
    ours: Any = tiny_model(name, BUDGETS.get(name, 16))
    ours.config.text_config = ours.model.language_model.config = model.config.text_config
    ours.model.language_model, ours.lm_head = model.model.language_model, model.lm_head
    ours.model.vision_tower = model.model.vision_tower
    if not isinstance(ours.model.multi_modal_projector.connector, torch.nn.Identity):
        ours.model.multi_modal_projector.connector = model.model.multi_modal_projector
    ours.model.query_encoder = handle._images.query_encoder  # the tower under test is the surgery's
    shorter = mixed_batch(tiny_processor(ours.model.multi_modal_projector.token_count())) | handle.ask(QUESTIONS)
    expected = ours(**shorter).logits
    torch.testing.assert_close(model(**batch, **handle.ask(QUESTIONS)).logits, expected, atol=1e-5, rtol=1e-5)
    length = batch["input_ids"].shape[1]
    ours.generation_config = model.generation_config
    told = model.generate(**batch, **handle.ask(QUESTIONS), max_new_tokens=4)
    assert torch.equal(told[:, -4:], ours.generate(**shorter, max_new_tokens=4)[:, -4:])
    assert torch.equal(told[:, :length], batch["input_ids"])
    assert told.shape[1] == length + 4


@torch.no_grad()
def test_with_every_patch_kept_the_model_is_stock(model: Any, processor: Any) -> None:
    batch = mixed_batch(processor)
    logits, told = model(**batch).logits, model.generate(**batch, max_new_tokens=4)
    with compress(model, "mlp"):
        torch.testing.assert_close(model(**batch).logits, logits, atol=1e-6, rtol=1e-6)
        assert torch.equal(model.generate(**batch, max_new_tokens=4), told)


@pytest.mark.parametrize("name", FREE)
@torch.no_grad()
def test_rows_of_a_batch_are_answered_as_alone_with_and_without_caches(
    model: Any, processor: Any, clip: Path, name: str
) -> None:
    handle, batch = attached(model, name, clip), mixed_batch(processor)
    logits = model(**batch, **handle.ask(QUESTIONS)).logits
    told = model.generate(**batch, **handle.ask(QUESTIONS), max_new_tokens=2)
    uncached = model.generate(**batch, **handle.ask(QUESTIONS), max_new_tokens=2, use_cache=False)
    assert torch.equal(told, uncached)
    for row in range(3):
        alone = single(processor, row)
        asked = handle.ask(QUESTIONS[row])
        mine = model(**alone, **asked).logits[0]
        torch.testing.assert_close(logits[row, -len(mine) :], mine, atol=2e-5, rtol=1e-5)
        answer = model.generate(**alone, **asked, max_new_tokens=2)[0, alone["input_ids"].shape[1] :]
        assert torch.equal(told[row, -2:], answer)


@pytest.mark.parametrize("name", ["visionzip", "prumerge", "fastv"])
@torch.no_grad()
def test_every_way_of_generating_returns_the_callers_rows_continued(
    model: Any, processor: Any, clip: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = mixed_batch(processor)
    ids, length = batch["input_ids"], batch["input_ids"].shape[1]
    attached(model, name, clip)
    greedy = model.generate(**batch, max_new_tokens=4)
    beams = model.generate(**batch, max_new_tokens=4, num_beams=3, num_return_sequences=2)
    assert torch.equal(beams[:, :length], ids.repeat_interleave(2, dim=0))
    assert torch.equal(model.generate(**batch, max_new_tokens=4, num_beams=3)[:, length:], beams[::2, length:])
    torch.manual_seed(0)
    drawn = model.generate(**batch, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert torch.equal(drawn[:, :length], ids.repeat_interleave(3, dim=0))
    assert len({tuple(row) for row in drawn[:3, length:].tolist()}) > 1
    full = model.generate(**batch, max_new_tokens=4, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(full.sequences, greedy)
    assert len(full.logits) == 4
    settings = GenerationConfig(max_new_tokens=4, pad_token_id=model.generation_config.pad_token_id)
    assert torch.equal(model.generate(ids, settings, **{k: v for k, v in batch.items() if k != "input_ids"}), greedy)
    alone = single(processor, 0)
    told = model.generate(**alone, max_new_tokens=4)[0, -4:]
    model.generate(**alone, max_new_tokens=4, streamer=TextStreamer(processor.tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.strip() == processor.tokenizer.decode(told).strip()


@torch.no_grad()
def test_words_alone_are_answered_as_stock(model: Any, processor: Any) -> None:
    batch = single(processor, 2)
    logits, told = model(**batch).logits, model.generate(**batch, max_new_tokens=4)
    with compress(model, "visionzip", 16):
        assert torch.equal(model(**batch).logits, logits)
        assert torch.equal(model.generate(**batch, max_new_tokens=4), told)


def test_the_loss_is_that_of_the_shorter_rows(model: Any, processor: Any) -> None:
    batch = mixed_batch(processor)
    labels = batch["input_ids"].clone()
    labels[labels == model.config.image_token_id] = IGNORED
    labels[batch["attention_mask"].cumsum(1) <= 1] = IGNORED  # padding, and the first word that nothing foretells
    compress(model, "visionzip", 16)
    output = model(**batch, labels=labels)
    images = model.get_image_features(batch["pixel_values"])
    losses = []
    for row, pictures in enumerate([images.pooler_output[:1], images.pooler_output[1:], []]):
        words = batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()
        kept, spare = [], {0: PATCHES - 16, 1: 2 * (PATCHES - 16), 2: 0}[row]
        for place, word in enumerate(words):
            surplus = word == model.config.image_token_id and sum(w == word for w in words[:place]) % PATCHES >= 16
            kept += [] if surplus else [word]
        assert len(words) - len(kept) == spare
        embedded = model.get_input_embeddings()(torch.tensor([kept]))
        visual = torch.tensor([kept]) == model.config.image_token_id
        if pictures:
            embedded = embedded.masked_scatter(visual.unsqueeze(-1), torch.cat(pictures))
        logits = model.lm_head(model.model.language_model(inputs_embeds=embedded).last_hidden_state)[0, :-1]
        targets = torch.tensor(kept)[1:].masked_fill(visual[0, 1:], IGNORED)
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none")[targets != IGNORED])
    torch.testing.assert_close(output.loss, torch.cat(losses).mean(), atol=1e-5, rtol=1e-5)
    output.loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.any()


@pytest.mark.parametrize("name", GUIDED)
@torch.no_grad()
def test_the_question_decides(model: Any, processor: Any, clip: Path, name: str) -> None:
    handle, batch = attached(model, name, clip), single(processor, 1)
    one, other = (model(**batch, **handle.ask(question)).logits for question in QUESTIONS[:2])
    assert one.shape != other.shape or (one[:, -1] - other[:, -1]).abs().max() > 1e-4
    rows = {"image_rows": torch.tensor([0, 0])}
    assert torch.equal(model(**batch, **handle.ask(QUESTIONS[0]), **rows).logits, one)
    told = model.generate(**batch, **handle.ask(QUESTIONS[0]), max_new_tokens=3)
    assert torch.equal(model.generate(**batch, **handle.ask(QUESTIONS[0]), **rows, max_new_tokens=3), told)


@torch.no_grad()
def test_an_encoder_of_ones_own_will_do(model: Any, processor: Any) -> None:
    words = query_tokenizer()
    encoder = QueryEncoder(query_config(words), vision_config())
    handle = compress(model, "prune", 16, text_encoder=encoder, query_tokenizer=words)
    assert model(**single(processor, 0), **handle.ask("what ?")).logits.shape[1] < PATCHES
    handle.query_tokenizer = None
    with pytest.raises(ValueError, match="query_tokenizer is missing"):
        handle.ask("what ?")


def test_methods_behind_the_connector_are_as_wide_as_the_language_model(model: Any, clip: Path) -> None:
    assert compress(model, "cdpruner", 16, text_encoder=clip).projector.compressor.width == 160


def test_long_questions_are_cut(model: Any, clip: Path) -> None:
    asked = compress(model, "prune", 16, text_encoder=clip).ask(["what ? " * 200, "how ?"])
    assert asked["query_input_ids"].shape == (2, 77)
    assert asked["query_attention_mask"].sum(1)[0] == 77


@torch.no_grad()
def test_two_models_are_compressed_apart_and_a_third_stays(processor: Any, clip: Path) -> None:
    batch = mixed_batch(processor)
    models = [stock_llava() for _ in range(3)]
    alone = []
    for name in ("visionzip", "average_pool"):
        with attached(models[0], name, clip):
            alone.append(models[0](**batch).logits)
    for model, name in zip(models, ("visionzip", "average_pool"), strict=False):
        attached(model, name, clip)
    stock = models[2](**batch).logits
    assert torch.equal(models[0](**batch).logits, alone[0])
    assert torch.equal(models[1](**batch).logits, alone[1])
    assert stock.shape[1] == batch["input_ids"].shape[1]


@pytest.mark.parametrize("name", ["visionzip", "fastv", "prune"])
@torch.no_grad()
def test_a_copy_works_by_itself(model: Any, processor: Any, clip: Path, name: str) -> None:
    batch = mixed_batch(processor)
    stock, before = model(**batch).logits, fingerprint(model)
    handle = attached(model, name, clip)
    expected = model(**batch, **handle.ask(QUESTIONS)).logits
    twin = copy.deepcopy(model)
    for weight in model.model.multi_modal_projector.parameters():
        weight.zero_()
    handle.detach()
    own = compression_of(twin)
    assert own is not None
    assert own.model is twin
    assert torch.equal(twin(**batch, **own.ask(QUESTIONS)).logits, expected)
    assert twin.generate(**batch, **own.ask(QUESTIONS), max_new_tokens=2).shape[1] == batch["input_ids"].shape[1] + 2
    own.detach()
    assert fingerprint(twin) == before
    assert torch.equal(twin(**batch).logits, stock)


@torch.no_grad()
def test_the_handle_s_settings_make_the_same_again(model: Any, processor: Any) -> None:
    batch = single(processor, 0)
    with compress(model, "visionzip", contextual=3, tokens=20) as handle:
        first = model(**batch).logits
    assert handle.settings == {"name": "visionzip", "tokens": 20, "contextual": 3}
    with compress(model, **handle.settings):
        assert torch.equal(model(**batch).logits, first)
    assert compress(model, "average_pool").settings["tokens"] == 36


@torch.no_grad()
def test_elastic_methods_take_a_budget_per_call(model: Any, processor: Any) -> None:
    batch = single(processor, 0)
    with compress(model, "average_pool", 9):
        small = model(**batch).logits
    compress(model, "average_pool", 36)
    assert torch.equal(model(**batch, visual_tokens=9).logits, small)
    assert model(**batch).logits.shape[1] == small.shape[1] + 27
    told = model.generate(**batch, visual_tokens=9, max_new_tokens=2, return_dict_in_generate=True)
    assert told.past_key_values.get_seq_length() == small.shape[1] + 1


@torch.no_grad()
def test_pictures_may_be_encoded_beforehand(model: Any, processor: Any) -> None:
    batch = mixed_batch(processor)
    compress(model, "prumerge")
    expected, told = model(**batch).logits, model.generate(**batch, max_new_tokens=3)
    images = model.get_image_features(batch.pop("pixel_values"))
    assert [len(tokens) for tokens in images.pooler_output] == images.compressed.counts_B.tolist()
    assert torch.equal(model(**batch, mm_encoder_outputs={"image": images}).logits, expected)
    assert torch.equal(model.generate(**batch, mm_encoder_outputs={"image": images}, max_new_tokens=3), told)


@torch.no_grad()
def test_positions_are_counted_anew_over_what_is_left(model: Any, processor: Any) -> None:
    batch, counted = single(processor, 0), []
    compress(model, "visionzip", 16)
    model.model.language_model.register_forward_pre_hook(
        lambda _, __, given: counted.append(given["position_ids"].tolist()), with_kwargs=True
    )
    places = {"position_ids": torch.arange(batch["input_ids"].shape[1])[None]}
    left = batch["input_ids"].shape[1] - (PATCHES - 16)
    model(**batch, **places)
    model.generate(**batch, **places, max_new_tokens=2)
    assert counted == [[list(range(left))], [list(range(left))], [[left]]]


@torch.no_grad()
def test_a_second_turn_goes_on_from_the_cache_where_the_pictures_are_passed_again(model: Any, processor: Any) -> None:
    batch = single(processor, 1)
    compress(model, "prumerge")
    first = model.generate(**batch, max_new_tokens=3, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, torch.tensor([[7, 8, 9]])], dim=1)
    again = {"input_ids": ids, "pixel_values": batch["pixel_values"]}
    expected = model.generate(**again, max_new_tokens=4)
    cache = first.past_key_values
    with pytest.raises(ValueError, match="pass pixel_values again"):
        model.generate(ids, past_key_values=cache, max_new_tokens=4)
    assert torch.equal(model.generate(**again, past_key_values=cache, max_new_tokens=4), expected)
    fresh = DynamicCache(config=model.config.text_config)
    assert torch.equal(model.generate(**again, past_key_values=fresh, max_new_tokens=4), expected)


@torch.no_grad()
def test_arguments_may_stand_in_stock_order_and_come_back_as_a_tuple(model: Any, processor: Any) -> None:
    batch = single(processor, 0)
    compress(model, "visionzip", 16)
    logits = model(batch["input_ids"], batch["pixel_values"], batch["attention_mask"], return_dict=False)[0]
    assert torch.equal(logits, model(**batch).logits)
    names = list(inspect.signature(model.forward).parameters)
    stock = list(inspect.signature(LlavaForConditionalGeneration.forward).parameters)[1:]
    assert [name for name in names if name in stock] == stock
    assert {"query_input_ids", "image_rows", "visual_tokens"} <= set(names)
    assert isinstance(model.get_image_features(batch["pixel_values"], return_dict=False), tuple)


@torch.no_grad()
def test_another_layer_may_be_named_per_call(model: Any, processor: Any) -> None:
    batch = single(processor, 0)
    with compress(stock_llava(vision_feature_layer=-4), "average_pool", 16) as other:
        expected = other.model(**batch).logits
        told = other.model.generate(**batch, max_new_tokens=3)
    compress(model, "average_pool", 16)
    assert torch.equal(model(**batch, vision_feature_layer=-4).logits, expected)
    assert torch.equal(model.generate(**batch, vision_feature_layer=-4, max_new_tokens=3), told)
    with pytest.raises(ValueError, match=r"vision_feature_layer is \[-2, -1\]"):
        model(**batch, vision_feature_layer=[-2, -1])


@torch.no_grad()
def test_what_had_been_put_over_an_instance_comes_back(model: Any, processor: Any) -> None:
    calls, stock = [], model.forward

    def placed(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return stock(*args, **kwargs)

    model.forward = placed
    with compress(model, "visionzip", 16):
        model(**single(processor, 0))
    assert model.forward is placed
    assert len(calls) == 1


def test_an_exception_in_the_block_detaches_too(model: Any) -> None:
    before = fingerprint(model)
    with pytest.raises(RuntimeError), compress(model, "visionzip", 16):
        raise RuntimeError
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", ["visionzip", "prune", "fastv"])
@torch.no_grad()
def test_the_method_follows_the_model_into_half_precision(model: Any, processor: Any, clip: Path, name: str) -> None:
    handle, batch = attached(model, name, clip), single(processor, 1)
    model.to(torch.bfloat16)
    assert model(**batch, **handle.ask("what ?")).logits.dtype == torch.bfloat16
    assert model.generate(**batch, **handle.ask("what ?"), max_new_tokens=2).shape[1] == batch["input_ids"].shape[1] + 2


def test_methods_and_models_that_do_not_suit_are_refused_and_leave_no_trace(model: Any, clip: Path) -> None:
    before = fingerprint(model)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"name": "tokenpacker"}, "'tokenpacker', which has parameters to train: use from_llava"),
        ({"name": "visionzipp"}, "did you mean 'visionzip'"),
        ({"name": "visionzip", "tokens": 0}, "choose 1 to 144"),
        ({"name": "visionzip", "wide": 3}, "options names wide"),
        ({"name": "prune"}, "text_encoder is missing, but prune reads the question"),
        ({"name": "fastv", "layer": 4}, "layer is 4, but the language model has 4 layers"),
    ]
    for arguments, said in wrong:
        with pytest.raises(ValueError, match=said):
            compress(model, **arguments)
    assert fingerprint(model) == before
    with pytest.raises(FileNotFoundError, match="holds no model"):
        compress(model, "prune", 16, text_encoder=clip / "none")
    with pytest.raises(ValueError, match="model is a LlavaModel, but a stock LlavaForConditionalGeneration is needed"):
        compress(model.model, "visionzip", 16)
    with pytest.raises(ValueError, match="model is a QMoPForConditionalGeneration"):
        compress(tiny_model(), "visionzip", 16)
    with pytest.raises(ValueError, match=r"vision_feature_layer is \[-2, -1\], but methods compress .* one layer"):
        compress(stock_llava(vision_feature_layer=[-2, -1]), "visionzip", 16)


def test_an_encoder_of_another_tower_is_refused(model: Any) -> None:
    words, other = query_tokenizer(), vision_config()
    other.hidden_size = 64
    encoder = QueryEncoder(query_config(words), other)
    with pytest.raises(ValueError, match="patches of width 64, but the vision tower's have 128"):
        compress(model, "prune", 16, text_encoder=encoder, query_tokenizer=words)


def test_a_class_token_that_the_tower_has_not_got_is_named(model: Any) -> None:
    from transformers import SiglipVisionModel  # noqa: PLC0415 - for this test alone

    config = SiglipVisionConfig(
        hidden_size=128, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=96, patch_size=8
    )
    model.model.vision_tower, model.config.vision_config = SiglipVisionModel(config), config
    with pytest.raises(ValueError, match=r"vision_feature_select_strategy of the model is 'default', but .* 'full'"):
        compress(model, "average_pool", 16)
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match="a siglip_vision_model has none: choose class_token=False"):
        compress(model, "visionzip", 16)
    handle = compress(model, "visionzip", 16, class_token=False)
    tokens: Tensor = model.get_image_features(torch.rand(1, 3, 96, 96)).pooler_output[0]
    assert tokens.shape == (16, 160)
    handle.detach()


def test_a_compressed_model_is_not_compressed_again(model: Any) -> None:
    with compress(model, "visionzip", 16), pytest.raises(ValueError, match="visionzip attached already: detach that"):
        compress(model, "average_pool", 16)
    compress(model, "average_pool", 16)


def test_calls_that_do_not_suit_are_refused(model: Any, processor: Any, clip: Path) -> None:
    handle, batch = attached(model, "prune", clip), mixed_batch(processor)
    with pytest.raises(ValueError, match=r"query is missing, but prune reads the question: add \*\*handle.ask"):
        model(**batch)
    with pytest.raises(ValueError, match="there are 3 images but 1 questions: pass image_rows"):
        model(**batch, **handle.ask("what ?"))
    with pytest.raises(ValueError, match="image_sizes are given"):
        model(**batch, **handle.ask(QUESTIONS), image_sizes=torch.tensor([[96, 96]]))
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    with pytest.raises(ValueError, match="pass input_ids"):
        model(inputs_embeds=embeds, **batch, **handle.ask(QUESTIONS), image_rows=torch.tensor([0, 1, 1]))


def test_pruning_by_importance_alone_needs_no_text_tower(model: Any) -> None:
    with compress(model, "prune", 16, lam=1.0) as handle:
        assert handle.ask("what ?") == {}
        assert handle.query_config is None
        assert len(model.get_image_features(torch.rand(1, 3, 96, 96)).pooler_output[0]) == 16


def test_a_question_of_nothing_is_refused(model: Any, clip: Path) -> None:
    with attached(model, "prune", clip) as handle, pytest.raises(ValueError, match="question is empty"):
        handle.ask([])


def test_a_setting_that_changes_is_not_answered_from_the_cache(model: Any, clip: Path) -> None:
    pixels, cache = torch.rand(2, 3, 96, 96), FeatureCache(2**24)
    with attached(model, "prune", clip, cache=cache) as handle, torch.no_grad():
        asked = handle.ask(["what colour ?", "how many ?"])
        before = model.get_image_features(pixels, **asked).compressed.kept_BM
        handle.projector.compressor.lam = 0.0
        after = model.get_image_features(pixels, **asked).compressed.kept_BM
    assert not torch.equal(before, after)
