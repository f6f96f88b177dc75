"""Corpora under one order: spans tile the positions, places follow from mixture and orders."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from pipelines.corpus.blend import Blend
from pipelines.corpus.manifest import Manifest
from pipelines.corpus.order import Order


@pytest.fixture
def two(rendered: Callable[..., Manifest]) -> tuple[Manifest, Manifest]:
    """Sixty samples in shards of eight, and twenty-five in shards of ten."""
    return rendered(), rendered("other", count=25, samples_per_shard=10, seed=9)


def delivered(order: Order) -> list[tuple[int, int]]:
    """What an order gives out in its first ten epochs, window by window."""
    windows = (window for epoch in range(10) for window in order.windows(epoch))
    return [place for window in windows for place in order.samples(window)]


def test_spans_tile_the_positions(two: tuple[Manifest, Manifest]) -> None:
    blend = Blend.load({two[0].folder: 3, two[1].folder: 1}, seed=4, window_shards=3)
    spans = [blend.span(number) for number in range(8)]
    assert spans[0][0] == 0
    assert all(one[1] == other[0] for one, other in pairwise(spans))
    for number, (low, high) in enumerate(spans):
        assert {blend.span_at(position) for position in (low, high - 1)} == {number}


def test_a_corpus_alone_keeps_its_own_order(two: tuple[Manifest, Manifest]) -> None:
    blend = Blend.load({two[0].folder: 2.5}, seed=4, window_shards=3)
    places, order = blend.places(7, 70), blend.orders[0]
    assert list(zip(places.shard.tolist(), places.index.tolist(), strict=True)) == delivered(order)[7:70]
    assert blend.epoch == 60
    assert blend.weights == (1,)


def test_every_corpus_is_read_in_its_own_order(two: tuple[Manifest, Manifest]) -> None:
    blend = Blend.load({two[0].folder: 3, two[1].folder: 1}, seed=4, window_shards=2)
    places = blend.places(0, 120)
    for corpus, order in enumerate(blend.orders):
        mine = places.corpus == corpus
        found = list(zip(places.shard[mine].tolist(), places.index[mine].tolist(), strict=True))
        assert found == delivered(order)[: int(mine.sum())]
    part = blend.places(33, 90)
    assert part.shard.tolist() == places.shard[33:90].tolist()


def test_an_epoch_of_a_mixture_repeats_nothing(two: tuple[Manifest, Manifest]) -> None:
    blend = Blend.load({two[0].folder: 3, two[1].folder: 1}, seed=4, window_shards=2)
    places = blend.places(0, blend.epoch)
    triples = list(zip(places.corpus.tolist(), places.shard.tolist(), places.index.tolist(), strict=True))
    assert len(set(triples)) == len(triples)
    assert 77 <= blend.epoch <= 80  # sixty of the first at three in four


def test_a_missing_corpus_is_named(two: tuple[Manifest, Manifest]) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/manifest\.json"):
        Blend.load({two[0].folder: 1, "/nowhere": 1}, seed=0, window_shards=1)
