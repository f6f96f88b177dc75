from __future__ import annotations

from collections import Counter

import pytest

from qmop.vtcbench.draws import Draws
from qmop.vtcbench.scene import (
    CELL_SIZE,
    COLOURS,
    LARGE_RADIUS,
    MOODS,
    SHAPES,
    SIGN,
    TEXTURES,
    Scene,
    Thing,
    caption,
    compose,
    random_scene,
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [random_scene(Draws(0, "scene-test", i)) for i in range(400)]


def test_objects_stay_inside_their_own_cells(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert len({thing.cell for thing in scene.things}) == len(scene.things)
        for thing in scene.things:
            for centre, cell in zip(thing.centre, (thing.cell % 3, thing.cell // 3), strict=True):
                assert cell * CELL_SIZE <= centre - thing.radius
                assert centre + thing.radius < (cell + 1) * CELL_SIZE


def test_free_scenes_use_every_word_of_the_world(scenes: list[Scene]) -> None:
    things = [thing for scene in scenes for thing in scene.things]

    assert {thing.shape for thing in things} == {*SHAPES, SIGN}
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.cell for thing in things} == set(range(9))
    assert {scene.mood for scene in scenes} == set(MOODS)
    assert {scene.texture for scene in scenes} == set(TEXTURES)
    assert {thing.digit for thing in things if thing.shape == SIGN} == set(range(10))


def test_free_scenes_hold_two_to_six_objects_and_at_most_one_large(scenes: list[Scene]) -> None:
    large = Counter(sum(thing.radius == LARGE_RADIUS for thing in scene.things) for scene in scenes)

    assert {len(scene.things) for scene in scenes} == {2, 3, 4, 5, 6}
    assert set(large) == {0, 1}
    assert 140 < large[1] < 260
    assert all(scene.largest is None or scene.largest.shape != SIGN for scene in scenes)


def test_only_signs_carry_digits(scenes: list[Scene]) -> None:
    assert all((thing.digit is not None) == (thing.shape == SIGN) for scene in scenes for thing in scene.things)


def test_counts_can_leave_colour_or_shape_open() -> None:
    scene = compose(Draws(0), [("circle", "red"), ("cross", "red"), ("circle", "blue")], mood="warm", texture="plain")

    assert (scene.count(colour="red"), scene.count(shape="circle"), scene.count(colour="red", shape="circle")) == (
        2,
        2,
        1,
    )
    assert scene.count() == 3
    assert (scene.mood, scene.texture) == ("warm", "plain")


def test_a_caption_states_every_object_with_its_place() -> None:
    things = (
        Thing(shape="circle", colour="red", cell=0, centre=(16, 16), radius=LARGE_RADIUS),
        Thing(shape=SIGN, colour="blue", cell=5, centre=(80, 48), radius=11, digit=0),
    )

    text = caption(Scene(things=things, mood="dark", texture="dotted"))

    assert text == "a dark dotted picture . top left : large red circle . right : blue sign with digit zero ."
