from __future__ import annotations

import pytest

from qmop.vtcbench.composing import FEWEST, LEVELS, MOST, Level, Wish, compose, fillers, total
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.rendered import free_scene
from qmop.vtcbench.scene import CELL_SIZE, Scene, cells_at, held_out
from qmop.vtcbench.words import COLOURS, DETAILS, INKS, KINDS, MOODS, SHAPES, SIDES, TEXTURES, details_of


@pytest.fixture(scope="module", params=LEVELS)
def scenes(request: pytest.FixtureRequest) -> tuple[Level, list[Scene]]:
    return request.param, [free_scene(Draws(0, "composing", request.param, i), request.param) for i in range(200)]


def test_objects_share_no_cell_and_stay_in_their_own(scenes: tuple[Level, list[Scene]]) -> None:
    for scene in scenes[1]:
        cells = [cell for thing in scene.things for cell in thing.cells]
        assert len(set(cells)) == len(cells)
        for thing in scene.things:
            row, column = divmod(thing.cell, 6)
            side = 2 * CELL_SIZE if thing.large else CELL_SIZE
            reach = thing.radius + (thing.kind == "tile")
            for centre, line in zip(thing.centre, (column, row), strict=True):
                overhang = 1 if thing.kind == "tile" else 0
                assert line * CELL_SIZE - overhang <= centre - reach
                assert centre + thing.radius <= line * CELL_SIZE + side + overhang


def test_scenes_hold_8_to_14_objects_and_on_the_hard_level_12_to_14(scenes: tuple[Level, list[Scene]]) -> None:
    level, drawn = scenes
    least = 12 if level == "hard" else FEWEST
    assert {len(scene.things) for scene in drawn} == set(range(least, MOST + 1))
    assert {total(Draws(1, i), level) for i in range(200)} == set(range(least, MOST + 1))


def test_objects_that_nobody_asks_for_are_combinations_of_training(scenes: tuple[Level, list[Scene]]) -> None:
    assert not any(held_out(t.kind, t.colour, t.place) for scene in scenes[1] for t in scene.things)


def test_every_word_of_the_world_comes_up(scenes: tuple[Level, list[Scene]]) -> None:
    things = [thing for scene in scenes[1] for thing in scene.things]
    grounds = [scene.ground for scene in scenes[1]]
    assert {thing.kind for thing in things} == set(KINDS)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.detail for thing in things} == set(DETAILS)
    assert {thing.ink for thing in things} == {*INKS, ""}
    assert all(thing.detail in details_of(thing.kind) and bool(thing.ink) == (thing.kind in SHAPES) for thing in things)
    assert {ground.mood for ground in grounds} == set(MOODS)
    assert {ground.texture for ground in grounds} == set(TEXTURES)
    assert {ground.light for ground in grounds} == set(SIDES)


def test_the_hard_level_is_harder_in_every_number() -> None:
    core, hard = (
        [compose(Draws(0, level, i), fillers(Draws(1, i), 12), level) for i in range(50)] for level in ("core", "hard")
    )
    for field in ("mood_contrast", "texture_contrast", "light_contrast"):
        assert max(getattr(s.ground, field) for s in hard) < min(getattr(s.ground, field) for s in core)
    assert min(s.ground.clutter for s in hard) > max(s.ground.clutter for s in core)
    assert hard[0].glyph_scale < core[0].glyph_scale
    assert hard[0].mark_size < core[0].mark_size
    assert max(s.face_contrast for s in hard) < min(s.face_contrast for s in core)


def test_wishes_are_fulfilled() -> None:
    wishes = [
        Wish(kind="cross", colour="blue", cells=cells_at(4), detail="box", ink="cyan", asked=True),
        Wish(kind="square", large=True),
        *fillers(Draws(2), 9, kinds=("circle", "diamond"), colours=("red", "green")),
    ]
    for number in range(100):
        scene = compose(Draws(3, number), wishes, "core", mood="cold")
        cross = scene.only(kind="cross")
        assert cross is not None
        assert (cross.colour, cross.place, cross.detail, cross.ink) == ("blue", 4, "box", "cyan")
        assert scene.largest is scene.only(kind="square")
        assert {thing.colour for thing in scene.things if thing.kind in ("circle", "diamond")} <= {"red", "green"}
        assert scene.ground.mood == "cold"


def test_asked_objects_of_the_held_out_level_stand_where_training_never_has_them() -> None:
    wishes = [Wish(kind="cross", colour="blue", asked=True), Wish(kind="circle", cells=cells_at(8), asked=True)]
    for number in range(50):
        scene = compose(Draws(4, number), [*wishes, *fillers(Draws(5, number), 8, kinds=("square",))], "held_out")
        found = {thing.kind: held_out(thing.kind, thing.colour, thing.place) for thing in scene.things}
        assert found == {"cross": True, "circle": True, "square": False}


def test_at_most_one_face_stands_in_the_way() -> None:
    for number in range(100):
        assert sum(wish.kind == "face" for wish in fillers(Draws(6, number), 14)) <= 1
