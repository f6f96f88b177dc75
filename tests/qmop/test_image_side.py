"""A method attached with a cache: what runs again, and what does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from qmop.encoders import QueryEncoder
from qmop.feature_cache import FeatureCache
from qmop.surgery import compress
from qmop.tiny.configs import query_config, vision_config
from qmop.tiny.tokenizer import query_tokenizer
from tests.fixtures.stock_llava import enliven, mixed_batch, single, stock_llava, stock_processor

QUESTIONS = ["what colour is the circle ?", "how many red objects are there ?", "what ?"]


@pytest.fixture(scope="module")
def processor() -> Any:
    return stock_processor()


@pytest.fixture
def model() -> Any:
    return stock_llava()


@pytest.fixture
def encoder() -> QueryEncoder:
    encoder = QueryEncoder(query_config(query_tokenizer()), vision_config()).eval()
    enliven(encoder, 1)
    return encoder


@pytest.fixture
def seen(model: Any) -> Iterator[list[int]]:
    """How many pictures each pass of the tower saw."""
    passes: list[int] = []
    hook = model.model.vision_tower.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    yield passes
    hook.remove()


@torch.no_grad()
def test_pictures_seen_before_are_not_looked_at_again(model: Any, processor: Any, seen: list[int]) -> None:
    batch, cache = mixed_batch(processor), FeatureCache(1 << 24)
    with compress(model, "visionzip", 16):
        expected, told = model(**batch).logits, model.generate(**batch, max_new_tokens=3)
    seen.clear()
    compress(model, "visionzip", 16, cache=cache)
    assert torch.equal(model(**batch).logits, expected)
    assert torch.equal(model.generate(**batch, max_new_tokens=3), told)
    assert torch.equal(model(**batch).logits, expected)
    assert seen == [3]
    alone = single(processor, 1)
    model(**alone)
    assert seen == [3]
    assert (cache.counters.hits, cache.counters.misses) == (8, 6)


@torch.no_grad()
def test_of_a_batch_only_the_new_pictures_are_looked_at(model: Any, processor: Any, seen: list[int]) -> None:
    batch = mixed_batch(processor)
    with compress(model, "prumerge"):
        expected = model(**batch).logits
    compress(model, "prumerge", cache=FeatureCache(1 << 24))
    model(**single(processor, 0))
    seen.clear()
    torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    assert seen == [2]


@torch.no_grad()
def test_another_question_needs_no_tower(model: Any, processor: Any, encoder: QueryEncoder, seen: list[int]) -> None:
    batch, cache = mixed_batch(processor), FeatureCache(1 << 24)
    own = {"text_encoder": encoder, "query_tokenizer": query_tokenizer()}
    with compress(model, "prune", 16, **own) as handle:
        swapped, mixed = (handle.ask([QUESTIONS[place] for place in places]) for places in ((1, 0, 2), (0, 2, 2)))
        expected, partly = model(**batch, **swapped).logits, model(**batch, **mixed).logits
    seen.clear()
    handle = compress(model, "prune", 16, **own, cache=cache)
    first = model(**batch, **handle.ask(QUESTIONS)).logits
    assert torch.equal(model(**batch, **swapped).logits, expected)
    assert not torch.equal(first, expected)
    assert seen == [3]
    torch.testing.assert_close(model(**batch, **mixed).logits, partly, atol=1e-5, rtol=1e-5)
    rows = {"image_rows": torch.tensor([0, 0])}
    padded = handle.ask([QUESTIONS[1], "what ? " * 9])
    hits = cache.counters.hits
    model(**single(processor, 1), **{name: value[:1] for name, value in padded.items()}, **rows)
    assert cache.counters.hits == hits + 2  # the question of these pictures at first, padded otherwise
    assert seen == [3]


@torch.no_grad()
def test_what_methods_read_alike_is_shared_and_the_rest_kept_apart(model: Any, processor: Any, seen: list[int]) -> None:
    batch, cache = single(processor, 0), FeatureCache(1 << 24)
    expected = []
    for name, tokens in (("average_pool", 16), ("random_tokens", 16), ("average_pool", 36), ("downsample", 36)):
        with compress(model, name, tokens):
            expected.append(model(**batch).logits)
    for turn in range(2):
        seen.clear()
        got = []
        for name, tokens in (("average_pool", 16), ("random_tokens", 16), ("average_pool", 36), ("downsample", 36)):
            with compress(model, name, tokens, cache=cache):
                got.append(model(**batch).logits)
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
        assert len(seen) == (2 if turn == 0 else 0)  # once as it is, once down-sampled


@torch.no_grad()
def test_changed_weights_make_old_entries_worthless(model: Any, processor: Any, seen: list[int]) -> None:
    batch, cache = single(processor, 0), FeatureCache(1 << 24)
    compress(model, "average_pool", 16, cache=cache)
    first = model(**batch).logits
    model.model.multi_modal_projector.linear_1.weight.mul_(1.5)
    second = model(**batch).logits
    assert not torch.equal(first, second)
    assert len(seen) == 1
    model.model.vision_tower.encoder.layers[0].mlp.fc1.weight.mul_(1.5)
    assert not torch.equal(model(**batch).logits, second)
    assert len(seen) == 2


def test_training_remembers_nothing(model: Any, processor: Any, seen: list[int]) -> None:
    batch, cache = single(processor, 0), FeatureCache(1 << 24)
    compress(model, "average_pool", 16, cache=cache)
    for _ in range(2):
        assert model(**batch).logits.requires_grad
    assert len(seen) == 2
    assert cache.counters.entries == 0


@torch.no_grad()
def test_a_small_cache_forgets_and_answers_the_same(model: Any, processor: Any, seen: list[int]) -> None:
    batch = mixed_batch(processor)
    with compress(model, "average_pool", 16):
        expected = model(**batch).logits
    seen.clear()
    cache = FeatureCache(3 * 16 * 160 * 4)  # the tokens of three pictures, but no tower's features
    compress(model, "average_pool", 16, cache=cache)
    for _ in range(2):
        assert torch.equal(model(**batch).logits, expected)
    assert seen == [3]
    assert cache.counters.refused == 3
    assert cache.counters.held_bytes == cache.max_bytes


@torch.no_grad()
def test_the_method_inside_the_language_model_is_cached_up_to_it(model: Any, processor: Any, seen: list[int]) -> None:
    batch = mixed_batch(processor)
    with compress(model, "fastv", 16):
        expected = model(**batch).logits
    seen.clear()
    compress(model, "fastv", 16, cache=FeatureCache(1 << 24))
    for _ in range(2):
        assert torch.equal(model(**batch).logits, expected)
    assert seen == [3]
