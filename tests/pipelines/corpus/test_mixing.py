"""Mixtures: proportions that hold in every block, and places that follow from the position alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.corpus.mixing import Mix, whole_weights


@pytest.mark.parametrize(
    ("weights", "whole"),
    [
        ([1], (1,)),
        ([3, 1], (3, 1)),
        ([0.75, 0.25], (3, 1)),
        ([0.2, 0.3, 0.5], (2, 3, 5)),
        ([4, 6], (2, 3)),
        ([7.5], (1,)),
    ],
)
def test_weights_become_the_smallest_whole_numbers(weights: list[float], whole: tuple[int, ...]) -> None:
    assert whole_weights(weights) == whole


@pytest.mark.parametrize(("weights", "said"), [([], "corpora is empty"), ([1, 0], "weight 0"), ([-0.5], "weight -0.5")])
def test_weights_that_mean_nothing_are_refused(weights: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        whole_weights(weights)


@given(
    weights=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    seed=st.integers(0, 2**30),
    start=st.integers(0, 60),
    length=st.integers(0, 60),
)
def test_every_prefix_of_blocks_has_the_exact_proportions(
    weights: list[int], seed: int, start: int, length: int
) -> None:
    mix = Mix(tuple(weights), seed)
    corpora, places = mix.places(0, 5 * mix.block)
    for block in range(5):
        mine = corpora[block * mix.block : (block + 1) * mix.block]
        assert np.bincount(mine, minlength=len(weights)).tolist() == weights
    for corpus in range(len(weights)):
        assert places[corpora == corpus].tolist() == list(range(5 * weights[corpus]))
    some = mix.places(start, start + length)
    whole = mix.places(0, start + length)
    assert [part.tolist() for part in some] == [part[start:].tolist() for part in whole]


def test_positions_and_counts_agree_with_the_places() -> None:
    mix = Mix((3, 1, 2), 8)
    corpora, places = mix.places(0, 40)
    for position, (corpus, place) in enumerate(zip(corpora.tolist(), places.tolist(), strict=True)):
        assert mix.position(corpus, place) == position
        assert [mix.taken(other, position) for other in range(3)] == [(corpora[:position] == o).sum() for o in range(3)]


def test_blocks_differ_and_seeds_too() -> None:
    first = Mix((5, 5), 1).places(0, 200)[0]
    blocks = {tuple(first[start : start + 10]) for start in range(0, 200, 10)}
    assert len(blocks) > 10
    assert first.tolist() != Mix((5, 5), 2).places(0, 200)[0].tolist()


def test_an_epoch_ends_before_the_first_corpus_comes_again() -> None:
    assert Mix((1,), 0).once([17]) == 17
    mix = Mix((3, 1), 4)
    stop = mix.once([30, 100])
    assert stop == mix.position(0, 30)
    corpora, _ = mix.places(0, stop)
    assert (corpora == 0).sum() == 30
    assert mix.once([300, 5]) == mix.position(1, 5)
