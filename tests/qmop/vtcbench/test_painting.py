from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from qmop.vtcbench.draws import Draws
from qmop.vtcbench.glyphs import DIGITS
from qmop.vtcbench.painting import GROUNDS, INKS, encode_png, paint
from qmop.vtcbench.scene import COLOURS, MOODS, SHAPES, SIGN, TEXTURES, Scene, Thing, compose, random_scene

_GRAIN = 8


def _near(pixel: np.ndarray, ink: tuple[int, int, int]) -> bool:
    return bool(np.all(np.abs(pixel.astype(int) - np.array(ink)) <= _GRAIN))


def _alone(shape: str, radius: int = 9, digit: int | None = None) -> np.ndarray:
    thing = Thing(shape=shape, colour="red", cell=4, centre=(48, 48), radius=radius, digit=digit)
    return paint(Scene(things=(thing,), mood="dark", texture="plain"), Draws(0, "alone"))


def test_a_picture_is_a_function_of_its_scene_and_stream() -> None:
    scene = random_scene(Draws(0, "s"))

    first, second, third = (paint(scene, Draws(0, name)) for name in ("p", "p", "q"))

    assert first.shape == (96, 96, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)


@pytest.mark.parametrize("colour", COLOURS)
def test_every_shape_shows_its_colour_at_its_centre(colour: str) -> None:
    scene = compose(Draws(1, colour), [(shape, colour) for shape in SHAPES])
    pixels = paint(scene, Draws(1, colour, "paint"))

    for thing in scene.things:
        assert _near(pixels[thing.centre[1], thing.centre[0]], INKS[colour])


def test_shapes_have_the_areas_of_their_geometry() -> None:
    areas = {
        shape: int(np.sum(np.abs(_alone(shape).astype(int) - np.array(INKS["red"])).max(axis=-1) <= _GRAIN))
        for shape in SHAPES
    }

    assert areas["square"] == 19 * 19
    assert areas["circle"] == pytest.approx(np.pi * 81, rel=0.03)
    assert areas["triangle"] == pytest.approx(0.5 * 19 * 19, rel=0.06)
    assert areas["cross"] == 19 * 7 * 2 - 7 * 7


@pytest.mark.parametrize("digit", range(10))
def test_the_digit_on_a_sign_can_be_read_off_the_pixels(digit: int) -> None:
    pixels = _alone(SIGN, radius=11, digit=digit)
    ink = pixels[41:55, 43:53].mean(axis=-1) < 128

    misses = [int(np.sum(ink[::2, ::2] != glyph)) for glyph in DIGITS]

    assert misses[digit] == 0
    assert sorted(misses)[1] >= 3


def test_moods_and_textures_all_look_different() -> None:
    pictures = {
        (mood, texture): paint(Scene(things=(), mood=mood, texture=texture), Draws(0, "ground"))
        for mood in MOODS
        for texture in TEXTURES
    }

    assert len({picture.tobytes() for picture in pictures.values()}) == 16
    for (mood, texture), picture in pictures.items():
        spread = picture.mean(axis=-1).std()
        assert (spread < 5.0) == (texture == "plain")
        assert picture.mean(axis=(0, 1)) == pytest.approx(np.mean(GROUNDS[mood], axis=0), abs=20)


def test_png_keeps_every_pixel() -> None:
    pixels = _alone("circle")

    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)
