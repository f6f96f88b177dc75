"""Settings and caches of calls over shortened prompts; second turns of our own models and of attached methods."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from qmop.continuing import (
    SHORTER,
    asked_setting,
    cached_columns,
    mark_shorter,
    require_no_gaps,
    require_pictures,
    require_whole_prefill,
    unread,
)
from qmop.surgery import compress
from qmop.tiny.assemble import tiny_config, tiny_model
from tests.fixtures.stock_llava import PATCHES, enliven, noise, single, stock_llava, stock_processor

IMAGE = tiny_config().image_token_id
MORE = torch.tensor([[7, 8, 9]])
KEPT = {"prumerge": 40, "average_pool": 16, "fastv": 10}
"""A method of varying, one of fixed count, and one that drops inside the language model; placeholders are 144."""


@pytest.mark.parametrize(
    ("in_call", "in_config", "in_model", "found"),
    [
        ({}, None, None, None),
        ({}, None, 3, 3),
        ({}, 2, 3, 2),
        ({}, None, 0, 0),
        ({"min_length": 1}, 2, 3, 1),
        ({"min_length": None}, 2, 3, None),
    ],
)
def test_a_setting_of_the_call_goes_before_its_configuration_and_that_before_the_model_s(
    in_call: dict[str, int | None], in_config: int | None, in_model: int | None, found: int | None
) -> None:
    kwargs = {**in_call, "generation_config": GenerationConfig(min_length=in_config)}
    assert asked_setting(kwargs, GenerationConfig(min_length=in_model), "min_length") == found
    if in_config is None:
        assert asked_setting(in_call, GenerationConfig(min_length=in_model), "min_length") == found


def test_a_prompt_in_pieces_is_named_with_its_size() -> None:
    require_whole_prefill({"prefill_chunk_size": None}, GenerationConfig(prefill_chunk_size=8))
    with pytest.raises(ValueError, match=r"prefill_chunk_size is 8, but .* in one pass: leave it out"):
        require_whole_prefill({}, GenerationConfig(prefill_chunk_size=8))


def test_caches_are_marked_and_copies_know() -> None:
    cache = DynamicCache()
    assert (cached_columns(None), cached_columns(cache)) == (0, 0)
    mark_shorter([None, torch.ones(1), cache])
    assert getattr(copy.deepcopy(cache), SHORTER)


def filled(columns: int) -> DynamicCache:
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, columns, 4), torch.zeros(1, 1, columns, 4), 0)
    return cache


def test_only_shortened_caches_ask_for_their_pictures() -> None:
    config, ids, cache = tiny_config(), torch.tensor([[1, IMAGE, 2]]), filled(2)
    require_pictures(config, ids, cache, always=False)
    with pytest.raises(ValueError, match="pass pixel_values again"):
        require_pictures(config, ids, cache, always=True)
    mark_shorter([cache])
    with pytest.raises(ValueError, match="pass pixel_values again"):
        require_pictures(config, ids, cache, always=False)
    require_pictures(config, torch.tensor([[1, 2]]), cache, always=True)
    require_pictures(config, ids, DynamicCache(), always=True)


def test_gaps_are_zeros_behind_a_first_token() -> None:
    require_no_gaps(None)
    require_no_gaps(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool))
    for row in ([0, 1, 0, 1], [1, 1, 1, 0]):
        with pytest.raises(ValueError, match="attention_mask has zeros behind a row's first token"):
            require_no_gaps(torch.tensor([row]))


def test_tokens_that_a_cache_holds_are_left_out() -> None:
    tokens = [torch.full((count, 2), float(count)) for count in (2, 3)]
    visual = torch.tensor([[0, 1, 1, 0, 1, 1, 1]]).bool()

    def left(columns: int) -> list[int]:
        return [len(each) for each in unread(tokens, visual, columns)]

    assert [left(columns) for columns in (0, 1, 2, 4, 6, 7)] == [[2, 3], [2, 3], [1, 3], [3], [1], []]
    assert [len(each) for each in unread(tokens[1:], visual, 4)] == [3]  # the caller left the first out


@pytest.fixture(scope="module", params=[(whose, method) for whose in ("ours", "attached") for method in KEPT])
def talking(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A model whose prompts have 144 placeholders per picture, and fewer tokens."""
    whose, method = request.param
    if whose == "attached":
        with compress(stock_llava(), method, KEPT[method]) as handle:
            yield handle.model
        return
    torch.manual_seed(0)
    model: Any = tiny_model(method, KEPT[method])
    enliven(model, 0)
    model.generation_config.eos_token_id = None
    model.model.multi_modal_projector.token_count = lambda *_: PATCHES  # as if its processor wrote so many
    yield model


def turn(model: Any, **batch: Any) -> Any:
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return model.generate(**batch, **settings, suppress_tokens=[IMAGE])  # random weights might write one


def same(told: Any, expected: Any) -> None:
    assert torch.equal(told.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(told.logits), torch.stack(expected.logits), rtol=0, atol=2e-5)


def longer(first: Any, *parts: Tensor) -> dict[str, Tensor]:
    ids = torch.cat([first.sequences, *parts], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def test_a_second_turn_goes_on_from_the_cache(talking: Any) -> None:
    batch = single(stock_processor(), 1)
    first = turn(talking, **batch)
    words, pictures = longer(first, MORE), {"pixel_values": batch["pixel_values"]}
    held, read = first.past_key_values.get_seq_length(), []
    hook = talking.model.language_model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["inputs_embeds"].shape[1]), with_kwargs=True
    )
    told = turn(talking, **words, **pictures, past_key_values=copy.deepcopy(first.past_key_values))
    hook.remove()
    assert read == [4, 1, 1, 1]  # the answer's last token and the three new ones
    if talking.model.language_model._forward_pre_hooks:  # a method inside chooses by the prompt's last token, once
        assert held == batch["input_ids"].shape[1] + 3
        return
    assert held < batch["input_ids"].shape[1] + 3
    same(told, turn(talking, **words, **pictures))
    with pytest.raises(ValueError, match="pass pixel_values again"):
        turn(talking, **words, past_key_values=first.past_key_values)


@torch.no_grad()
def test_a_second_turn_may_bring_a_picture(talking: Any) -> None:
    batch = single(stock_processor(), 0)
    first = turn(talking, **batch)
    picture = stock_processor()(images=noise(1, seed=9), text="<image>", return_tensors="pt")
    words = longer(first, MORE, picture["input_ids"], MORE)
    pictures = {"pixel_values": torch.cat([batch["pixel_values"], picture["pixel_values"]])}
    told = turn(talking, **words, **pictures, past_key_values=copy.deepcopy(first.past_key_values))
    if not talking.model.language_model._forward_pre_hooks:
        same(told, turn(talking, **words, **pictures))
        with pytest.raises(ValueError, match=r"288 placeholders per image.*pass every picture"):
            turn(talking, **words, pixel_values=picture["pixel_values"], past_key_values=first.past_key_values)


@torch.no_grad()
def test_a_pass_over_new_words_may_carry_the_old_pictures(talking: Any) -> None:
    batch = single(stock_processor(), 0)
    cache = talking(**batch, use_cache=True).past_key_values
    expected = talking(input_ids=MORE, past_key_values=copy.deepcopy(cache)).logits
    told = talking(input_ids=MORE, pixel_values=batch["pixel_values"], past_key_values=cache).logits
    assert torch.equal(told, expected)


@torch.no_grad()
def test_shortened_rows_with_gaps_do_not_go_on(talking: Any) -> None:
    batch = single(stock_processor(), 0)
    first = turn(talking, **batch)
    words = longer(first, MORE)
    words["attention_mask"][:, -4] = 0
    if not talking.model.language_model._forward_pre_hooks:
        with pytest.raises(ValueError, match="attention_mask has zeros behind"):
            turn(talking, **words, pixel_values=batch["pixel_values"], past_key_values=first.past_key_values)
