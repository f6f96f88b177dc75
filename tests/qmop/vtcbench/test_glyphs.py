from __future__ import annotations

from itertools import combinations

import numpy as np

from qmop.vtcbench.glyphs import DIGITS, digit_mask


def test_every_two_digits_differ_in_at_least_three_pixels() -> None:
    gaps = {(a, b): int(np.sum(DIGITS[a] != DIGITS[b])) for a, b in combinations(range(10), 2)}

    assert DIGITS.shape == (10, 7, 5)
    assert min(gaps.values()) >= 3


def test_every_digit_fills_its_box_and_leaves_some_of_it_blank() -> None:
    for glyph in DIGITS:
        assert glyph.any(axis=1).all()
        assert 9 <= glyph.sum() <= 20


def test_one_is_a_stem_and_seven_starts_with_a_bar() -> None:
    assert DIGITS[1][:, 2].all()
    assert DIGITS[7][0].all()


def test_scaling_repeats_pixels() -> None:
    mask = digit_mask(4, 3)

    assert mask.shape == (21, 15)
    assert mask.sum() == 9 * DIGITS[4].sum()
    assert np.array_equal(mask[::3, ::3], DIGITS[4])
