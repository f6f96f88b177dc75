from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GemmaConfig, GenerationConfig, MistralConfig, Qwen2Config, StaticCache

from qmop.compressors.fastv import FastV
from qmop.in_llm import Reducer, attach_reducer, forward_reduced
from qmop.placeholders import IGNORED
from qmop.reduced_pass import Pass
from qmop.surgery import Compression, compress
from qmop.tiny.assemble import tiny_model
from tests.fixtures.stock_llava import PATCHES, enliven, mixed_batch, single, stock_llava, stock_processor, words_config

TOKENS, LAYER = 10, 2


@pytest.fixture(scope="module")
def processor() -> Any:
    return stock_processor()


@pytest.fixture(scope="module")
def model() -> Any:
    return stock_llava()


@pytest.fixture
def handle(model: Any) -> Any:
    with compress(model, "fastv", tokens=TOKENS, layer=LAYER) as attached:
        yield attached


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()[None, None]


def kept_by_hand(model: Any, batch: dict[str, Any], layer: int = LAYER, tokens: int = TOKENS) -> list[int]:
    """Columns that go on, off the full attention map of the layer before; one row without padding."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    row = eager(**batch, output_attentions=True).attentions[layer - 1][0].mean(0)[-1]
    columns = batch["input_ids"][0].tolist()
    places = [place for place, word in enumerate(columns) if word == model.config.image_token_id]
    kept = [place for place in range(len(columns)) if place not in places]
    for start in range(0, len(places), PATCHES):
        picture = places[start : start + PATCHES]
        kept += sorted(picture, key=lambda place: -row[place].item())[:tokens]
    return sorted(kept)


def by_hand(model: Any, batch: dict[str, Any], kept: list[int], layer: int = LAYER) -> Tensor:
    """Logits of the columns that go on, layer after layer, without hooks or caches."""
    inner, ids = model.model, batch["input_ids"]
    states = inner.get_input_embeddings()(ids)
    pictures = torch.cat(inner.get_image_features(batch["pixel_values"]).pooler_output)
    states = states.masked_scatter((ids == model.config.image_token_id).unsqueeze(-1), pictures)
    language = inner.language_model
    cos, sin = language.rotary_emb(states, torch.arange(ids.shape[1])[None])
    for index, block in enumerate(language.layers):
        if index == layer:
            states, cos, sin = states[:, kept], cos[:, kept], sin[:, kept]
        states = block(states, attention_mask=causal(states.shape[1]), position_embeddings=(cos, sin))
    return model.lm_head(language.norm(states))


@pytest.mark.parametrize("row", [0, 1])
@torch.no_grad()
def test_a_prompt_is_read_as_by_hand(model: Any, processor: Any, row: int) -> None:
    batch = single(processor, row)
    kept = kept_by_hand(model, batch)
    expected = by_hand(model, batch, kept)
    full = model(**batch).logits
    with compress(model, "fastv", tokens=TOKENS, layer=LAYER):
        logits = model(**batch).logits
    assert logits.shape[1] == full.shape[1] - (row + 1) * (PATCHES - TOKENS)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert (logits[:, -1] - full[:, -1]).abs().max() > 1e-2


@pytest.mark.parametrize("layer", [1, 3])
@torch.no_grad()
def test_the_layer_is_an_option(model: Any, processor: Any, layer: int) -> None:
    batch = single(processor, 0)
    expected = by_hand(model, batch, kept_by_hand(model, batch, layer), layer)
    with compress(model, "fastv", tokens=TOKENS, layer=layer):
        torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("words", [words_config(Qwen2Config), words_config(MistralConfig, sliding_window=None)])
@torch.no_grad()
def test_other_families_are_read_as_by_hand(processor: Any, words: Any) -> None:
    model, batch = stock_llava(words), single(processor, 0)
    expected = by_hand(model, batch, kept_by_hand(model, batch))
    with compress(model, "fastv", tokens=TOKENS):
        torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_rows_of_a_batch_are_read_as_alone(model: Any, processor: Any, implementation: str) -> None:
    model = copy.deepcopy(model)
    model.set_attn_implementation(implementation)
    longest = max(len(kept_by_hand(model, single(processor, row))) for row in (0, 1))
    with compress(model, "fastv", tokens=TOKENS, layer=LAYER):
        logits = model(**mixed_batch(processor)).logits
        assert logits.shape[1] == longest
        for row in range(3):
            alone = model(**single(processor, row)).logits[0]
            torch.testing.assert_close(logits[row, -len(alone) :], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_on_the_right_changes_nothing(model: Any, processor: Any, handle: Compression) -> None:
    del handle
    batch, alone = single(processor, 0), model(**single(processor, 0)).logits
    batch["input_ids"] = torch.nn.functional.pad(batch["input_ids"], (0, 3))
    batch["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 3))
    torch.testing.assert_close(model(**batch).logits, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_is_generated_is_what_the_kept_columns_say(model: Any, processor: Any) -> None:
    batch = single(processor, 1)
    kept = kept_by_hand(model, batch)
    with compress(model, "fastv", tokens=TOKENS, layer=LAYER):
        told = model.generate(**batch, max_new_tokens=5, output_logits=True, return_dict_in_generate=True)
    length, ids = batch["input_ids"].shape[1], told.sequences
    rerun = {"input_ids": ids[:, :-1], "pixel_values": batch["pixel_values"]}
    expected = by_hand(model, rerun, [*kept, *range(length, ids.shape[1] - 1)])[:, -5:]
    torch.testing.assert_close(torch.stack(told.logits, dim=1), expected, atol=1e-5, rtol=1e-5)
    shapes = [layer.keys.shape[2] for layer in told.past_key_values.layers]
    assert shapes == [length + 4, length + 4, len(kept) + 4, len(kept) + 4]


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
@torch.no_grad()
def test_generation_is_the_same_without_caches_and_alone(
    model: Any, processor: Any, handle: Compression, search: dict[str, int]
) -> None:
    del handle
    batch = mixed_batch(processor)
    length, told = batch["input_ids"].shape[1], {"return_dict_in_generate": True, "output_logits": True}
    one, other = (model.generate(**batch, max_new_tokens=4, use_cache=use, **told, **search) for use in (True, False))
    cached = one.sequences
    assert torch.equal(cached, other.sequences)
    torch.testing.assert_close(torch.stack(one.logits), torch.stack(other.logits), atol=1e-5, rtol=1e-5)
    assert torch.equal(cached[:: len(cached) // 3, :length], batch["input_ids"])
    for row in range(3):
        alone = single(processor, row)
        told = model.generate(**alone, max_new_tokens=4, **search)[:, alone["input_ids"].shape[1] :]
        assert torch.equal(cached[row * len(told) : (row + 1) * len(told), length:], told)


@torch.no_grad()
def test_a_copied_cache_knows_what_was_dropped(model: Any, processor: Any, handle: Compression) -> None:
    del handle
    batch, more = mixed_batch(processor), torch.tensor([[7, 8, 9]] * 3)
    cache = DynamicCache(config=model.config.text_config)
    model(**batch, past_key_values=cache)
    twin = copy.deepcopy(cache)
    twin.batch_repeat_interleave(2)
    mask = torch.cat([batch["attention_mask"], torch.ones_like(more)], dim=1)
    logits = model(input_ids=more, attention_mask=mask, past_key_values=cache).logits
    twice = [rows.repeat_interleave(2, dim=0) for rows in (more, mask)]
    again = model(input_ids=twice[0], attention_mask=twice[1], past_key_values=twin).logits
    torch.testing.assert_close(again[::2], logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again[1::2], logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_second_turn_goes_on_from_the_cache(model: Any, processor: Any) -> None:
    batch, more = single(processor, 1), torch.tensor([[7, 8, 9]])
    kept, length = kept_by_hand(model, batch), batch["input_ids"].shape[1]
    whole = {"input_ids": torch.cat([batch["input_ids"], more], dim=1), "pixel_values": batch["pixel_values"]}
    expected = by_hand(model, whole, [*kept, *range(length, length + 3)])
    with compress(model, "fastv", tokens=TOKENS, layer=LAYER):
        cache = model(**batch, use_cache=True).past_key_values
        logits = model(input_ids=more, past_key_values=cache).logits
        torch.testing.assert_close(logits, expected[:, -3:], atol=1e-5, rtol=1e-5)
        cache = model(**batch, use_cache=True).past_key_values
        told = model.generate(**whole, past_key_values=cache, max_new_tokens=1)
    assert told[0, -1] == expected[0, -1].argmax()


@torch.no_grad()
def test_a_picture_of_a_second_turn_is_reduced_by_the_prompt_so_far(model: Any, processor: Any) -> None:
    first, second = single(processor, 0), single(processor, 1)
    kept, length = kept_by_hand(model, first), first["input_ids"].shape[1]
    joined = {name: torch.cat([first[name], second[name]], dim=int(name != "pixel_values")) for name in first}
    both = kept_by_hand(model, joined)
    kept += [place for place in both if place >= length]
    expected = by_hand(model, joined, kept)
    with compress(model, "fastv", tokens=TOKENS, layer=LAYER):
        cache = model(**first, use_cache=True).past_key_values
        second["attention_mask"] = joined["attention_mask"]
        logits = model(**second, past_key_values=cache).logits
        torch.testing.assert_close(logits, expected[:, -logits.shape[1] :], atol=1e-5, rtol=1e-5)
        assert cache.layers[-1].keys.shape[2] == len(kept)


@torch.no_grad()
def test_with_every_token_kept_nothing_differs(model: Any, processor: Any) -> None:
    batch = mixed_batch(processor)
    logits, told = model(**batch).logits, model.generate(**batch, max_new_tokens=4)
    with compress(model, "fastv", tokens=PATCHES):
        assert torch.equal(model(**batch).logits, logits)
        assert torch.equal(model.generate(**batch, max_new_tokens=4), told)


@torch.no_grad()
def test_words_alone_are_read_as_stock(model: Any, processor: Any) -> None:
    batch = single(processor, 2)
    logits, told = model(**batch).logits, model.generate(**batch, max_new_tokens=4)
    with compress(model, "fastv", tokens=TOKENS):
        assert torch.equal(model(**batch).logits, logits)
        assert torch.equal(model.generate(**batch, max_new_tokens=4), told)


def test_the_loss_is_that_of_the_kept_columns_and_the_prompt_decides(model: Any, processor: Any) -> None:
    batch = single(processor, 0)
    with torch.no_grad():
        kept, length = kept_by_hand(model, batch), batch["input_ids"].shape[1]
    batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([[7, 8, 9]])], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    labels = batch["input_ids"].clone()
    labels[:, :length] = IGNORED
    with torch.no_grad():
        logits = by_hand(model, batch, [*kept, *range(length, length + 3)])[0, -4:-1]
    with compress(model, "fastv", tokens=TOKENS, layer=LAYER):
        output = model(**batch, labels=labels)
        as_tuple = model(**batch, labels=labels, return_dict=False)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([7, 8, 9]))
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(as_tuple[0], output.loss)
    assert torch.equal(as_tuple[1], output.logits)
    output.loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.any()
    model.zero_grad()


@torch.no_grad()
def test_half_precision_runs(model: Any, processor: Any) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    batch = mixed_batch(processor)
    with compress(half, "fastv", tokens=TOKENS):
        assert half(**batch).logits.isfinite().all()
        assert half.generate(**batch, max_new_tokens=3).shape[1] == batch["input_ids"].shape[1] + 3


def test_labels_go_with_their_columns() -> None:
    labels = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    order, real = torch.tensor([[0, 3], [1, 2]]), torch.tensor([[False, True], [True, True]])
    assert Pass(order_RK=order, real_RK=real).fit_labels(labels).tolist() == [[IGNORED, 4], [6, 7]]
    assert Pass().fit_labels(labels) is labels


@torch.no_grad()
def test_kernels_are_not_shown_the_gaps_in_positions(model: Any, processor: Any, handle: Compression) -> None:
    del handle
    shown: list[Any] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, __, given: shown.append(given["position_ids"]), with_kwargs=True)
        for block in model.model.language_model.layers
    ]
    model(**single(processor, 0))
    for hook in hooks:
        hook.remove()
    assert [place is None for place in shown] == [False, False, True, True]


@torch.no_grad()
def test_padding_between_turns_is_not_seen_later(model: Any, processor: Any, handle: Compression) -> None:
    del handle
    logits = []
    for batch in (mixed_batch(processor), single(processor, 0)):
        rows = len(batch["input_ids"])
        gap = torch.ones(rows, 2, dtype=torch.long) if rows > 1 else torch.ones(1, 1, dtype=torch.long)
        gap[0, 0] = int(rows == 1)  # the first row's word comes one column later in the batch
        cache, mask = DynamicCache(config=model.config.text_config), batch.pop("attention_mask")
        model(**batch, attention_mask=mask, position_ids=mask.cumsum(1) - 1, past_key_values=cache)
        for more in (gap * 9, torch.full((rows, 1), 5)):
            mask = torch.cat([mask, (more > 0).long()], dim=1)
            places = (mask.cumsum(1) - 1)[:, -more.shape[1] :]
            output = model(input_ids=more, attention_mask=mask, position_ids=places, past_key_values=cache)
        logits.append(output.logits[0, -1])
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hooks_come_and_go(model: Any, processor: Any) -> None:
    batch = single(processor, 0)
    logits = model(**batch).logits
    hooks = [list(module._forward_pre_hooks) for module in model.modules()]
    reducer = attach_reducer(model.model.language_model, FastV(width=128, grid=12, tokens=TOKENS))
    assert torch.equal(model(**batch).logits, logits)  # not told which columns are visual
    reducer.detach()
    assert [list(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert torch.equal(model(**batch).logits, logits)


@torch.no_grad()
def test_our_own_model_reduces_by_itself(processor: Any) -> None:
    """As the same weights do with the method attached to them."""
    ours: Any = tiny_model("fastv", TOKENS)
    enliven(ours, 0)
    whole: Any = tiny_model("mlp")
    whole.load_state_dict(ours.state_dict())
    batch = single(processor, 0)
    logits, full = ours(**batch).logits, whole(**batch).logits
    assert logits.shape[1] == full.shape[1] - (PATCHES - TOKENS)
    assert (logits[:, -1] - full[:, -1]).abs().max() > 1e-3
    attach_reducer(whole.model.language_model, ours.model.multi_modal_projector.compressor)
    words = {name: batch[name] for name in ("input_ids", "attention_mask")}
    words["mm_encoder_outputs"] = {"image": whole.get_image_features(batch["pixel_values"])}
    assert torch.equal(forward_reduced(whole, whole.forward, words).logits, logits)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    cached = ours.generate(**batch, **settings)
    assert torch.equal(cached, ours.generate(**batch, **settings, use_cache=False))


def test_a_static_cache_is_refused(model: Any, processor: Any, handle: Compression) -> None:
    del handle
    batch = single(processor, 0)
    cache = StaticCache(config=model.config.text_config, max_cache_len=200)
    with pytest.raises(ValueError, match=r"the cache is static.*leave cache_implementation out"):
        model(**batch, past_key_values=cache)


def test_a_cache_cut_back_into_the_prompt_is_refused(model: Any, processor: Any, handle: Compression) -> None:
    del handle
    with torch.no_grad():
        cache = model(**single(processor, 0), use_cache=True).past_key_values
        cache.crop(-5)
        with pytest.raises(ValueError, match="cut back into a prompt"):
            model(input_ids=torch.tensor([[5]]), past_key_values=cache)


@pytest.fixture(params=["attached", "ours"])
def reduced(request: pytest.FixtureRequest) -> Any:
    """A model that drops tokens inside: a stock one with the method attached, or one of ours."""
    if request.param == "ours":
        yield tiny_model("fastv", TOKENS)
        return
    with compress(stock_llava(), "fastv", tokens=TOKENS, layer=LAYER) as attached:
        yield attached.model


@pytest.mark.parametrize("place", ["argument", "configuration", "model"])
def test_a_prompt_in_pieces_is_refused_wherever_that_is_set(reduced: Any, processor: Any, place: str) -> None:
    batch, said = single(processor, 0), r"prefill_chunk_size is 32.*leave it out"
    if place == "model":
        reduced.generation_config.prefill_chunk_size = 32
    settings = {
        "argument": {"max_new_tokens": 1, "prefill_chunk_size": 32},
        "configuration": {"generation_config": GenerationConfig(max_new_tokens=1, prefill_chunk_size=32)},
        "model": {"max_new_tokens": 1},
    }
    with pytest.raises(ValueError, match=said):
        reduced.generate(**batch, **settings[place])
    if place == "model":
        told = reduced.generate(**batch, max_new_tokens=1, prefill_chunk_size=None)
        assert told.shape[1] == batch["input_ids"].shape[1] + 1


def test_placeholders_that_are_no_whole_pictures_are_refused(model: Any, processor: Any, handle: Compression) -> None:
    del handle
    batch, pixels = single(processor, 0), single(processor, 0)["pixel_values"]
    images = model.get_image_features(pixels)
    images.pooler_output, images.compressed = [images.pooler_output[0][1:]], None
    words = {name: batch[name][:, 1:] for name in ("input_ids", "attention_mask")}
    assert (words["input_ids"] == model.config.image_token_id).sum() == PATCHES - 1
    with pytest.raises(ValueError, match="143 visual tokens, which is no multiple of 144"):
        model(**words, mm_encoder_outputs={"image": images})


def test_embeddings_without_ids_are_refused(model: Any, processor: Any, handle: Compression) -> None:
    del handle
    batch = single(processor, 0)
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    with pytest.raises(ValueError, match="pass input_ids"):
        model(inputs_embeds=embeds, **batch)


@pytest.mark.parametrize(
    ("words", "layer", "said"),
    [
        (words_config(), 4, "layer is 4, but the language model has 4 layers: choose 1 to 3"),
        (words_config(MistralConfig), 2, "a mistral with sliding windows"),
        (words_config(GemmaConfig, head_dim=40), 2, "a gemma, but tokens can be dropped only in llama, mistral, qwen2"),
    ],
)
def test_language_models_that_do_not_suit_are_refused(words: Any, layer: int, said: str) -> None:
    language = stock_llava(words).model.language_model
    with pytest.raises(ValueError, match=said):
        Reducer(language, FastV(width=128, grid=12, tokens=TOKENS, layer=layer))
    assert not any(module._forward_pre_hooks for module in language.modules())
