from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from qmop.feature_cache import (
    CachedFeatures,
    FeatureCache,
)
from qmop.features import CompressedTokens, VisualFeatures
from qmop.tiny.assemble import tiny_model, tiny_processor

CPU = torch.device("cpu")


def entry(size: int = 4) -> CompressedTokens:
    """Four bytes to each of `size` numbers."""
    return CompressedTokens(tokens_BMC=torch.zeros(1, size, 1))


class Tower:
    """Counts the pictures that it sees."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, pixels: Tensor) -> VisualFeatures:
        self.seen += len(pixels)
        return VisualFeatures(
            patches_BNC=pixels.flatten(2).transpose(1, 2) * 2, grid=(2, 2), summary_BC=pixels.mean((2, 3))
        )


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def test_the_least_recently_used_goes_first() -> None:
    cache = FeatureCache(48)
    for key in "abc":
        cache.put(key, entry())
    assert cache.get("a") is not None
    cache.put("d", entry())
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]
    counters = cache.counters
    assert (counters.entries, counters.held_bytes, counters.evicted) == (3, 48, 1)
    assert (counters.hits, counters.misses) == (4, 1)


def test_the_budget_of_bytes_is_never_exceeded() -> None:
    cache = FeatureCache(100)
    for step, size in enumerate([5, 20, 3, 25, 1, 26, 24]):
        cache.put(step, entry(size))
        assert cache.counters.held_bytes <= 100
    counters = cache.counters
    assert (counters.refused, counters.held_bytes, counters.entries) == (1, 100, 2)


def test_the_same_key_is_replaced_and_everything_can_be_forgotten() -> None:
    cache = FeatureCache(100)
    cache.put("a", entry(5))
    cache.put("a", entry(7))
    assert (cache.counters.held_bytes, cache.counters.entries, cache.counters.evicted) == (28, 1, 0)
    cache.clear()
    assert (cache.counters.held_bytes, cache.counters.entries) == (0, 0)
    assert cache.get("a") is None


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes is 0: choose a positive number"):
        FeatureCache(0)


def test_many_threads_agree_on_the_counts() -> None:
    cache = FeatureCache(400)

    def work(thread: int) -> None:
        for step in range(200):
            if cache.get((thread * step) % 37) is None:
                cache.put((thread * step) % 37, entry(1 + step % 9))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    counters = cache.counters
    assert counters.hits + counters.misses == 1600
    held = list(cache._entries.values())
    assert counters.entries == len(held)
    assert counters.held_bytes == sum(value.tokens_BMC.nbytes for value in held) <= 400


def test_a_copy_is_the_cache_itself() -> None:
    cache = FeatureCache(10)
    assert copy.deepcopy({"cache": cache})["cache"] is cache


@torch.no_grad()
def test_only_new_pictures_are_computed_and_the_rest_is_bit_for_bit(pixels: Tensor) -> None:
    tower, cached = Tower(), CachedFeatures(FeatureCache(10_000))
    expected = Tower()(pixels)
    cached.features(pixels[[1, 3]], tower, owner="tower")
    got = cached.features(pixels[[0, 1, 2, 3, 0]], tower, owner="tower")
    assert tower.seen == 4
    assert got.grid == (2, 2)
    assert torch.equal(got.patches_BNC, expected.patches_BNC[[0, 1, 2, 3, 0]])
    assert torch.equal(got.summary_BC, expected.summary_BC[[0, 1, 2, 3, 0]])
    counters = cached.cache.counters if cached.cache else None
    assert counters is not None
    assert (counters.hits, counters.misses, counters.entries) == (2, 5, 4)


@torch.no_grad()
def test_what_was_put_in_does_not_change_with_what_comes_out(pixels: Tensor) -> None:
    tower, cached = Tower(), CachedFeatures(FeatureCache(10_000))
    first = cached.features(pixels, tower, owner="tower")
    kept = first.patches_BNC.clone()
    first.patches_BNC.zero_()
    cached.features(pixels, tower, owner="tower").patches_BNC.zero_()
    assert torch.equal(cached.features(pixels, tower, owner="tower").patches_BNC, kept)
    assert tower.seen == 4


@torch.no_grad()
def test_an_entry_holds_no_more_memory_than_it_counts(pixels: Tensor) -> None:
    cache = FeatureCache(10_000)
    CachedFeatures(cache).features(pixels, Tower(), owner="tower")
    tensors = [value for held in cache._entries.values() for value in held.values() if isinstance(value, Tensor)]
    assert sum(value.untyped_storage().nbytes() for value in tensors) == cache.counters.held_bytes


@torch.no_grad()
def test_another_owner_computes_anew(pixels: Tensor) -> None:
    tower, cached = Tower(), CachedFeatures(FeatureCache(10_000))
    for owner in ("one", "other"):
        cached.features(pixels, tower, owner=owner)
    assert tower.seen == 8


def test_nothing_is_remembered_while_gradients_are_recorded(pixels: Tensor) -> None:
    tower, cache = Tower(), FeatureCache(10_000)
    leaf = pixels.requires_grad_()
    for _ in range(2):
        assert CachedFeatures(cache).features(leaf, tower, owner="tower").patches_BNC.requires_grad
    assert tower.seen == 8
    assert cache.counters.entries == 0
    assert not CachedFeatures(None).active


@torch.no_grad()
def test_nothing_is_remembered_while_the_projector_trains(pixels: Tensor) -> None:
    tower, cache, projector = Tower(), FeatureCache(10_000), torch.nn.Linear(2, 2)
    cached = CachedFeatures(cache, projector)
    for _ in range(2):
        cached.features(pixels, tower, owner="tower")
    assert (tower.seen, cache.counters.entries) == (8, 0)
    projector.eval()
    for _ in range(2):
        cached.features(pixels, tower, owner="tower")
    assert (tower.seen, cache.counters.entries) == (12, 4)


@torch.no_grad()
def test_a_model_in_training_mode_draws_anew(pictures: Callable[[int], list[Image.Image]]) -> None:
    torch.manual_seed(1)
    model, processor = tiny_model("qmop", 16), tiny_processor(16)
    model.model.feature_cache = FeatureCache(10**8)
    texts = ["<user> <image> red ?"]
    batch = processor(images=pictures(1), text=texts, query=texts, padding=True, return_tensors="pt")
    seen = {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask")}
    model.train().model.multi_modal_projector.compressor.router.anneal(1.0, 1.0)
    one, other = (model.get_image_features(**seen).compressed.branch_weights_BS for _ in range(2))
    assert not torch.equal(one, other)
    model.eval()
    one, other = (model.get_image_features(**seen).compressed.branch_weights_BS for _ in range(2))
    assert torch.equal(one, other)
    assert model.model.feature_cache.counters.hits == 1


@torch.no_grad()
def test_no_pictures_are_no_matter(pixels: Tensor) -> None:
    tower, cached = Tower(), CachedFeatures(FeatureCache(10_000))
    assert cached.features(pixels[:0], tower, owner="tower").patches_BNC.shape == (0, 4, 3)
    nothing = cached.compressed(
        [], lambda places: CompressedTokens(tokens_BMC=torch.zeros(len(places), 2, 5)), owner=1, device=CPU
    )
    assert nothing.tokens_BMC.shape == (0, 2, 5)


@torch.no_grad()
def test_an_entry_too_large_to_keep_is_still_returned(pixels: Tensor) -> None:
    tower, cache = Tower(), FeatureCache(8)
    got = CachedFeatures(cache).features(pixels, tower, owner="tower")
    assert torch.equal(got.patches_BNC, Tower()(pixels).patches_BNC)
    assert cache.counters.refused == 4


def compressor(places: Tensor) -> CompressedTokens:
    """As many tokens as the place in the batch says, padded to the longest asked for."""
    longest = int(places.max()) + 1
    place_M = torch.arange(longest)
    mask = place_M <= places.unsqueeze(1)
    tokens = (places.unsqueeze(1) * 10 + place_M).float().masked_fill(~mask, 0).unsqueeze(-1)
    return CompressedTokens(tokens_BMC=tokens, mask_BM=mask, kept_BM=torch.where(mask, place_M, -1))


@torch.no_grad()
def test_tokens_of_different_number_are_padded_again() -> None:
    cached, digests = CachedFeatures(FeatureCache(10_000)), [b"a", b"b", b"c", b"d"]
    cached.compressed(digests[:2], compressor, owner="x", device=CPU)
    whole = cached.compressed(digests, compressor, owner="x", device=CPU)
    expected = compressor(torch.arange(4))
    assert whole.counts_B.tolist() == [1, 2, 3, 4]
    for name in ("tokens_BMC", "mask_BM", "kept_BM"):
        assert torch.equal(whole[name], expected[name])
    counters: Any = cached.cache and cached.cache.counters
    assert (counters.hits, counters.entries) == (2, 4)


@torch.no_grad()
def test_fixed_numbers_get_no_mask() -> None:
    cached, tokens = CachedFeatures(FeatureCache(10_000)), torch.rand(3, 2, 5)

    def compute(places: Tensor) -> CompressedTokens:
        return CompressedTokens(tokens_BMC=tokens[places], branch_weights_BS=tokens[places, 0])

    for rows in ([0, 1], [1, 0, 2], [2]):
        got = cached.compressed(
            rows, lambda places, rows=rows: compute(torch.tensor(rows)[places]), owner=1, device=CPU
        )
        assert got.mask_BM is None
        assert torch.equal(got.tokens_BMC, tokens[rows])
        assert torch.equal(got.branch_weights_BS, tokens[rows, 0])
