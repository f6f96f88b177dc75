from __future__ import annotations

from collections import Counter

import pytest

from qmop.vtcbench.scene import (
    CELL_SIZE,
    CELLS,
    IMAGE_SIZE,
    Ground,
    Scene,
    Thing,
    caption,
    cells_at,
    held_out,
    on_side,
    place_of,
    sorted_things,
)
from qmop.vtcbench.words import COLOURS, KINDS, PLACES

GROUND = Ground(
    mood="dark",
    texture="dotted",
    light="top",
    mood_contrast=40,
    texture_contrast=30,
    light_contrast=40,
    clutter=0,
    grain=0,
)


def test_nine_places_share_out_the_cells() -> None:
    assert sorted(cell for place in range(9) for cell in cells_at(place)) == list(range(CELLS))
    assert all(place_of(cell) == place for place in range(9) for cell in cells_at(place))
    assert cells_at(PLACES.index("top right")) == (4, 5, 10, 11)
    assert cells_at(PLACES.index("bottom")) == (26, 27, 32, 33)


@pytest.mark.parametrize(
    ("side", "cells"), [("left", (0, 32)), ("right", (3, 35)), ("top", (0, 17)), ("bottom", (18,))]
)
def test_every_side_is_half_of_the_picture(side: str, cells: tuple[int, ...]) -> None:
    assert sum(on_side(cell, side) for cell in range(CELLS)) == CELLS // 2
    assert all(on_side(cell, side) for cell in cells)


def test_a_large_object_fills_its_place_and_others_their_cell() -> None:
    small = Thing(kind="circle", colour="red", cell=9, detail="dot")
    large = Thing(kind="circle", colour="red", cell=14, detail="dot", large=True, shift=(2, -1))
    assert (small.cells, small.place, small.centre) == ((9,), 1, (3.5 * CELL_SIZE, 1.5 * CELL_SIZE))
    assert (large.cells, large.place) == ((14, 15, 20, 21), PLACES.index("middle"))
    assert large.centre == (IMAGE_SIZE // 2 + 2, IMAGE_SIZE // 2 - 1)


def test_a_sixth_of_all_combinations_is_held_out_and_no_two_attributes_give_the_third_away() -> None:
    combinations = [(kind, colour, place) for kind in KINDS for colour in COLOURS for place in range(9)]
    held = [combination for combination in combinations if held_out(*combination)]
    assert len(held) * 6 == len(combinations)
    assert set(Counter((kind, place) for kind, _, place in held).values()) == {1}
    assert set(Counter((colour, place) for _, colour, place in held).values()) == {1, 2}
    assert set(Counter((kind, colour) for kind, colour, _ in held).values()) == {1, 2}
    assert len({kind for kind, _, _ in held}) == len(KINDS)


def test_a_caption_states_every_object_with_its_place() -> None:
    things = (
        Thing(kind="tile", colour="blue", cell=17, detail="seven"),
        Thing(kind="circle", colour="red", cell=0, detail="dot", ink="pink", large=True),
        Thing(kind="face", colour="green", cell=22, detail="sad"),
    )
    text = caption(Scene(things=sorted_things(iter(things)), ground=GROUND))
    assert text == (
        "a dark dotted picture with light from the top . top left : large red circle pink dot ."
        " right : blue tile seven , green face sad ."
    )


def test_objects_are_found_by_what_they_are() -> None:
    red = Thing(kind="circle", colour="red", cell=0, detail="dot", ink="white")
    blue = Thing(kind="circle", colour="blue", cell=1, detail="dot", ink="white")
    cross = Thing(kind="cross", colour="red", cell=2, detail="dot", ink="white")
    scene = Scene(things=(red, blue, cross), ground=GROUND)
    assert (scene.count(colour="red"), scene.count(kind="circle"), scene.count(colour="red", kind="circle")) == (
        2,
        2,
        1,
    )
    assert (scene.only(kind="cross"), scene.only(colour="red"), scene.only(kind="square")) == (cross, None, None)
    assert scene.largest is None
