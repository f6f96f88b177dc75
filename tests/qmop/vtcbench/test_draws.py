from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from qmop.vtcbench.draws import Draws


def test_golden_values_never_change() -> None:
    draws = Draws(0, "golden", 1)

    assert [draws.word() for _ in range(3)] == [12244709670550099045, 1745794788994252212, 9488556244227485553]
    assert [draws.integer(0, 10) for _ in range(10)] == [1, 2, 2, 5, 0, 8, 6, 5, 6, 9]
    assert draws.sample("abcdef", 3) == ["c", "b", "e"]
    assert draws.shuffled(range(6)) == [4, 2, 3, 1, 0, 5]
    assert draws.noise(2, 5).tolist() == [[253, 237, 249, 57, 203], [64, 220, 18, 89, 217]]


def test_equal_addresses_give_equal_streams_and_others_do_not() -> None:
    streams = [Draws(0, "a", 1), Draws(0, "a", 1), Draws(0, "b", 1), Draws(1, "a", 1), Draws(0, "a", 2)]
    words = [tuple(stream.word() for _ in range(200)) for stream in streams]

    assert words[0] == words[1]
    assert len(set(words)) == 4


@pytest.mark.parametrize("span", [2, 3, 7, 10])
def test_integers_are_uniform(span: int) -> None:
    draws = Draws(1, "uniform", span)

    counts = np.bincount([draws.integer(5, 5 + span) - 5 for _ in range(20_000)], minlength=span)

    assert len(counts) == span
    assert chisquare(counts).pvalue > 1e-4


def test_integers_reject_the_words_that_would_favour_low_values(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(0, "rejection")
    words = iter([2**64 - 1, 2**64 - 2, 4])  # 2 ** 64 is 1 modulo 3, so only the very last word is one too many
    monkeypatch.setattr(draws, "word", lambda: next(words))

    assert [draws.integer(0, 3), draws.integer(0, 3)] == [(2**64 - 2) % 3, 1]


def test_samples_are_distinct_members_in_uniform_order() -> None:
    draws = Draws(2, "sample")
    samples = [tuple(draws.sample(range(4), 2)) for _ in range(12_000)]

    assert all(first != second for first, second in samples)
    counts = [samples.count((a, b)) for a in range(4) for b in range(4) if a != b]
    assert chisquare(counts).pvalue > 1e-4


def test_shuffle_keeps_every_member_and_its_argument() -> None:
    options = list(range(50))

    shuffled = Draws(3).shuffled(options)

    assert sorted(shuffled) == options == list(range(50))
    assert shuffled != options


def test_noise_is_uniform_and_apart_from_the_words() -> None:
    draws, other = Draws(4), Draws(4)
    draws.word()
    other.word()

    picture = draws.noise(100, 101)

    assert picture.shape == (100, 101)
    assert picture.dtype == np.uint8
    assert chisquare(np.bincount(picture.ravel(), minlength=256)).pvalue > 1e-4
    assert draws.word() == other.word()


def test_impossible_draws_are_refused() -> None:
    with pytest.raises(ValueError, match=r"empty range \[3, 3\)"):
        Draws(0).integer(3, 3)
    with pytest.raises(ValueError, match="5 different members out of 4"):
        Draws(0).sample(range(4), 5)
