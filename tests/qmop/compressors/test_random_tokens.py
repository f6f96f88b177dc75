from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from qmop.compressors.random_tokens import RandomTokens, random_places
from qmop.features import CompressedTokens, VisualFeatures

MakeFeatures = Callable[..., VisualFeatures]
ThroughModel = Callable[..., tuple[CompressedTokens, torch.Tensor]]


@pytest.mark.parametrize("tokens", [1, 9, 36])
def test_keeps_different_patches_unchanged_in_raster_order(make_features: MakeFeatures, tokens: int) -> None:
    features = make_features(2)
    kept = RandomTokens(width=16, grid=6, tokens=tokens)(features)
    places = kept.kept_BM[0].tolist()
    assert places == sorted(set(places))
    assert len(places) == tokens
    assert torch.equal(kept.tokens_BMC, features.patches_BNC[:, places])


def test_the_same_patches_whatever_the_picture_and_the_batch(make_features: MakeFeatures) -> None:
    method = RandomTokens(width=16, grid=6, tokens=9)
    many, other = method(make_features(3)).kept_BM, method(make_features(1, seed=5)).kept_BM
    assert torch.equal(many, other.expand(3, -1))
    again = RandomTokens(width=16, grid=6, tokens=4)(make_features(1), tokens=9).kept_BM
    assert torch.equal(again, other)


def test_the_global_generator_plays_no_part() -> None:
    random_places.cache_clear()
    torch.manual_seed(1)
    first = random_places(0, 24, 144)
    random_places.cache_clear()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert random_places(0, 24, 144) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_seed_grid_and_budget_draw_anew() -> None:
    drawn = {random_places(seed, 24, 64) for seed in range(5)} | {random_places(0, 12, 64)}
    assert len(drawn) == 6
    assert not set(random_places(0, 24, 16)) <= set(random_places(0, 24, 64))


def test_every_patch_is_as_likely() -> None:
    counts = Counter(place for seed in range(2000) for place in random_places(seed, 4, 4))
    assert len(counts) == 16
    assert all(abs(count - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5 for count in counts.values())


def test_wrong_inputs_are_named(make_features: MakeFeatures) -> None:
    with pytest.raises(ValueError, match="seed is -1, but a generator cannot start from it: choose 0 or more"):
        RandomTokens(width=16, grid=6, tokens=9, seed=-1)
    with pytest.raises(ValueError, match="tokens is 40, but a 6 x 6 grid has 36 patches"):
        RandomTokens(width=16, grid=6, tokens=9)(make_features(1), tokens=40)


def test_works_in_a_model(through_model: ThroughModel) -> None:
    kept, logits = through_model("random_tokens", 16, seed=3)
    assert kept.kept_BM.tolist() == [list(random_places(3, 12, 16))] * 2
    assert kept.tokens_BMC.shape == (2, 16, 160)
    assert logits.isfinite().all()


def test_the_recorded_places_are_drawn_again() -> None:
    """Published rows rest on these draws; they change only with numpy's permutations."""
    assert random_places(0, 12, 4) == (4, 98, 121, 140)
