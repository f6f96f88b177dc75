"""Scenes to pixels, by integer arithmetic alone, so that a seed gives the same bytes everywhere."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from qmop.vtcbench.draws import Draws
from qmop.vtcbench.glyphs import digit_mask
from qmop.vtcbench.scene import IMAGE_SIZE, SIGN, Scene, Thing

INKS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 87, 214),
    "yellow": (240, 220, 40),
    "purple": (148, 60, 189),
    "orange": (255, 127, 14),
}
GROUNDS = {
    "warm": ((196, 164, 132), (172, 138, 108)),
    "cold": ((140, 164, 180), (112, 138, 158)),
    "dark": ((44, 44, 48), (70, 70, 76)),
    "bright": ((250, 248, 244), (222, 222, 220)),
}
_ROWS, _COLUMNS = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
_PERIOD = 8
_GRAIN = 16


def _texture_mask(texture: str) -> np.ndarray:
    """Where the second ground colour shows, `(H, W)` boolean."""
    half = _PERIOD // 2
    if texture == "striped":
        return half > (_ROWS + _COLUMNS) % _PERIOD
    if texture == "checked":
        return (_ROWS // half + _COLUMNS // half) % 2 == 0
    if texture == "dotted":
        return (_ROWS % _PERIOD - half) ** 2 + (_COLUMNS % _PERIOD - half) ** 2 <= half
    return np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)


def _shape_mask(thing: Thing) -> np.ndarray:
    """Where an object's ink is, `(H, W)` boolean."""
    across, down = _COLUMNS - thing.centre[0], _ROWS - thing.centre[1]
    radius = thing.radius
    if thing.shape == "circle":
        return across**2 + down**2 <= radius**2
    if thing.shape == "triangle":
        return (2 * np.abs(across) <= down + radius) & (np.abs(down) <= radius)
    if thing.shape == "cross":
        arm = radius // 3
        near = (np.abs(across) <= radius) & (np.abs(down) <= radius)
        return near & ((np.abs(across) <= arm) | (np.abs(down) <= arm))
    return (np.abs(across) <= radius) & (np.abs(down) <= radius)


def _paint_sign(canvas: np.ndarray, thing: Thing) -> None:
    """A white plate inside the coloured square, with the digit in black on it."""
    x, y = thing.centre
    inner = thing.radius - 3
    canvas[y - inner : y + inner + 1, x - inner : x + inner + 1] = 255
    ink = digit_mask(thing.digit or 0, 2)
    top, left = y - ink.shape[0] // 2, x - ink.shape[1] // 2
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]][ink] = 0


def paint(scene: Scene, draws: Draws) -> np.ndarray:
    """Draw a scene.

    Returns:
        `(96, 96, 3)` uint8, RGB. A little grain from `draws` keeps flat areas from being exactly equal.
    """
    first, second = GROUNDS[scene.mood]
    canvas = np.where(_texture_mask(scene.texture)[..., None], np.array(second), np.array(first)).astype(np.int16)
    for thing in scene.things:
        canvas[_shape_mask(thing)] = INKS[thing.colour]
        if thing.shape == SIGN:
            _paint_sign(canvas, thing)
    grain = (draws.noise(IMAGE_SIZE, IMAGE_SIZE) % _GRAIN).astype(np.int16) - _GRAIN // 2
    return np.clip(canvas + grain[..., None], 0, 255).astype(np.uint8)


def encode_png(pixels: np.ndarray) -> bytes:
    """Lossless PNG bytes of an `(H, W, 3)` uint8 picture."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
