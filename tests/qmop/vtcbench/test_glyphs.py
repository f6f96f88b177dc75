from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from qmop.vtcbench.glyphs import FACES, GLYPHS, glyph_mask, mark_mask
from qmop.vtcbench.words import FEELINGS, LETTERS, MARKS, NUMBERS


@pytest.mark.parametrize("names", [NUMBERS, LETTERS])
def test_every_two_glyphs_of_a_kind_differ_in_at_least_three_dots(names: tuple[str, ...]) -> None:
    assert {GLYPHS[name].shape for name in names} == {(7, 5)}
    assert min(int(np.sum(GLYPHS[a] != GLYPHS[b])) for a, b in combinations(names, 2)) >= 3


def test_every_glyph_fills_its_box_and_leaves_some_of_it_blank() -> None:
    assert set(GLYPHS) == {*NUMBERS, *LETTERS}
    for glyph in GLYPHS.values():
        assert glyph.any(axis=1).all()
        assert 9 <= glyph.sum() <= 20


def test_letters_and_digits_look_like_themselves() -> None:
    assert GLYPHS["one"][:, 2].all()
    assert GLYPHS["seven"][0].all()
    assert GLYPHS["l"][:, 0].all()
    assert GLYPHS["h"][3].all()
    assert np.array_equal(GLYPHS["x"], GLYPHS["x"][::-1])


def test_scaling_repeats_dots() -> None:
    mask = glyph_mask("four", 3)
    assert mask.shape == (21, 15)
    assert mask.sum() == 9 * GLYPHS["four"].sum()
    assert np.array_equal(mask[::3, ::3], GLYPHS["four"])


@pytest.mark.parametrize("size", [5, 7])
def test_marks_of_one_size_differ_widely_and_reach_their_size(size: int) -> None:
    masks = {name: mark_mask(name, size) for name in MARKS}
    assert all(mask.shape == (size, size) and mask.any(axis=0).all() for mask in masks.values())
    assert min(int(np.sum(masks[a] != masks[b])) for a, b in combinations(MARKS, 2)) >= 4
    assert not masks["box"][size // 2, size // 2]


@pytest.mark.parametrize(("name", "size"), [("star", 5), ("dot", 6)])
def test_marks_that_cannot_be_drawn_are_named(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=f"a mark '{name}' of {size} pixels cannot be drawn: choose dot, .* odd size"):
        mark_mask(name, size)


def test_feelings_differ_in_the_mouth_alone() -> None:
    assert {mask.shape for mask in FACES.values()} == {(7, 7)}
    assert len({FACES[feeling][:3].tobytes() for feeling in FEELINGS}) == 1
    assert min(int(np.sum(FACES[a] != FACES[b])) for a, b in combinations(FEELINGS, 2)) >= 8
