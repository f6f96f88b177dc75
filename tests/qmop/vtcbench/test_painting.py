from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from qmop.vtcbench.draws import Draws
from qmop.vtcbench.glyphs import FACES, GLYPHS
from qmop.vtcbench.painting import INK_PAINTS, MOOD_SHIFTS, OUTLINE, PAINTS, encode_png, paint
from qmop.vtcbench.rendered import free_scene
from qmop.vtcbench.scene import Ground, Scene, Thing
from qmop.vtcbench.words import COLOURS, FEELINGS, INKS, LETTERS, MOODS, NUMBERS, SHAPES, SIDES, TEXTURES

PLAIN = Ground(
    mood="dark",
    texture="plain",
    light="top",
    mood_contrast=40,
    texture_contrast=0,
    light_contrast=0,
    clutter=0,
    grain=0,
)


def _alone(kind: str, detail: str, colour: str = "red", ink: str = "", **facts: int) -> np.ndarray:
    """One object in cell 14 without shift: centred on (40, 40)."""
    thing = Thing(kind=kind, colour=colour, cell=14, detail=detail, ink=ink)
    return paint(Scene(things=(thing,), ground=PLAIN, **facts), Draws(0, "alone"))


def test_a_picture_is_a_function_of_its_scene_and_stream() -> None:
    scene = free_scene(Draws(0, "s"), "core")
    first, second, third = (paint(scene, Draws(0, name)) for name in ("p", "p", "q"))
    assert first.shape == (96, 96, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_shows_its_colour_around_its_mark(shape: str, colour: str) -> None:
    pixels = _alone(shape, "dot", colour, "white", mark_size=5)
    inked = np.all(pixels == PAINTS[colour], axis=-1)
    rows, columns = np.nonzero(inked)
    assert 45 <= inked.sum() <= 150
    assert 33 <= rows.min() <= rows.max() <= 47
    assert 33 <= columns.min() <= columns.max() <= 47


def test_shapes_have_outlines_that_no_two_share() -> None:
    outlines = [np.all(_alone(shape, "dot", ink="white") == OUTLINE, axis=-1) for shape in SHAPES]
    for number, outline in enumerate(outlines):
        assert outline.sum() >= 20
        assert all(np.sum(outline != other) >= 16 for other in outlines[:number])


@pytest.mark.parametrize("ink", INKS)
def test_a_mark_has_its_ink_at_its_size(ink: str) -> None:
    for size in (5, 7):
        inked = np.all(_alone("square", "plus", "red", ink, mark_size=size) == INK_PAINTS[ink], axis=-1)
        rows, columns = np.nonzero(inked)
        assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == size


@pytest.mark.parametrize("name", [*NUMBERS, *LETTERS])
@pytest.mark.parametrize("scale", [1, 2])
def test_what_is_on_a_tile_can_be_read_off_the_pixels(name: str, scale: int) -> None:
    for colour, ink in (("blue", 255), ("yellow", 0)):
        pixels = _alone("tile", name, colour, glyph_scale=scale)
        top, left = 40 - 7 * scale // 2, 40 - 5 * scale // 2
        read = np.all(pixels[top : top + 7 * scale : scale, left : left + 5 * scale : scale] == ink, axis=-1)
        assert np.array_equal(read, GLYPHS[name])


@pytest.mark.parametrize("feeling", FEELINGS)
def test_a_face_is_as_dark_as_its_contrast_says(feeling: str) -> None:
    pixels = _alone("face", feeling, "yellow", face_contrast=60)
    darker = np.array(PAINTS["yellow"]) - 60
    assert np.array_equal(np.all(pixels[37:44, 37:44] == np.maximum(darker, 0), axis=-1), FACES[feeling])


def test_a_large_object_is_twice_as_tall() -> None:
    thing = Thing(kind="circle", colour="red", cell=14, detail="dot", ink="white", large=True, radius=14)
    pixels = paint(Scene(things=(thing,), ground=PLAIN), Draws(0, "large"))
    rows, _ = np.nonzero(np.all(pixels == PAINTS["red"], axis=-1))
    assert np.ptp(rows) + 1 == 27


@pytest.mark.parametrize("texture", TEXTURES)
def test_the_contrast_of_a_texture_is_between_its_tones(texture: str) -> None:
    pixels = paint(Scene(things=(), ground=replace(PLAIN, texture=texture, texture_contrast=30)), Draws(0, "t"))
    near = np.abs(np.diff(pixels[..., 0].astype(int), axis=1))
    assert (near.max() >= 28) == (texture != "plain")
    assert near.max() <= 33


@pytest.mark.parametrize("side", SIDES)
def test_the_lit_side_is_brighter_by_the_contrast(side: str) -> None:
    pixels = paint(Scene(things=(), ground=replace(PLAIN, light=side, light_contrast=40)), Draws(0, "l")).mean(-1)
    ends = {"left": pixels[:, :8], "right": pixels[:, -8:], "top": pixels[:8], "bottom": pixels[-8:]}
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
    assert max(ends, key=lambda name: ends[name].mean()) == side
    assert ends[side].mean() - ends[opposite[side]].mean() == pytest.approx(37, abs=8)


@pytest.mark.parametrize("mood", MOODS)
def test_a_mood_moves_the_ground_by_its_contrast(mood: str) -> None:
    pixels = paint(Scene(things=(), ground=replace(PLAIN, mood=mood)), Draws(0, "m")).mean(axis=(0, 1))
    assert pixels == pytest.approx(128 + 40 * np.array(MOOD_SHIFTS[mood]), abs=4)


def test_clutter_and_grain_add_what_they_say() -> None:
    def spread(**facts: int) -> float:
        return float(paint(Scene(things=(), ground=replace(PLAIN, **facts)), Draws(0, "c")).std())

    assert spread(clutter=30) > spread(clutter=4) > spread()
    assert spread(grain=24) > spread(grain=6) > spread()


def test_no_object_hides_what_another_carries() -> None:
    for number in range(60):
        scene = free_scene(Draws(8, number), "core")
        together = paint(replace(scene, ground=PLAIN), Draws(0, "o"))
        for thing in scene.things:
            lone = paint(replace(scene, things=(thing,), ground=PLAIN), Draws(0, "o"))
            x, y = thing.centre
            half = 5 if thing.kind == "tile" else 3
            box = np.s_[y - half : y + half + 1, x - half + 1 : x + half]
            assert np.array_equal(together[box], lone[box]), (number, thing)


def test_png_keeps_every_pixel() -> None:
    pixels = paint(free_scene(Draws(0, "png"), "hard"), Draws(0, "png"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)
