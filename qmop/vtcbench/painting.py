"""Scenes to pixels, by integer arithmetic alone, so that a seed gives the same bytes everywhere."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image

from qmop.vtcbench.draws import Draws
from qmop.vtcbench.glyphs import FACES, glyph_mask, mark_mask
from qmop.vtcbench.scene import CELL_SIZE, IMAGE_SIZE, Ground, Scene, Thing
from qmop.vtcbench.words import FACE, TILE

PAINTS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 87, 214),
    "yellow": (240, 220, 40),
    "purple": (148, 60, 189),
    "orange": (255, 127, 14),
}
INK_PAINTS = {"white": (255, 255, 255), "black": (0, 0, 0), "pink": (255, 160, 205), "cyan": (0, 235, 235)}
MOOD_SHIFTS = {"warm": (1, 0, -1), "cold": (-1, 0, 1), "dark": (-1, -1, -1), "bright": (1, 1, 1)}
OUTLINE = (20, 20, 20)
_DARK_TYPE = ("yellow", "orange")
_ROWS, _COLUMNS = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
_PERIOD = 8
_MID = 128
_CLOUD = 8
_CLOUD_CELLS = 6
_SPECK = 44


def paint(scene: Scene, draws: Draws) -> np.ndarray:
    """Draw a scene.

    Returns:
        `(96, 96, 3)` uint8, RGB. Clouds, specks and grain come from `draws`.
    """
    canvas = _ground(scene.ground, draws)
    for thing in scene.things:
        _paint_thing(canvas, thing, scene)
    grain = scene.ground.grain
    noise = (draws.noise(IMAGE_SIZE, IMAGE_SIZE) % (2 * grain + 1)).astype(np.int16) - grain
    return np.clip(canvas + noise[..., None], 0, 255).astype(np.uint8)


def encode_png(pixels: np.ndarray) -> bytes:
    """Lossless PNG bytes of an `(H, W, 3)` uint8 picture."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def _ground(ground: Ground, draws: Draws) -> np.ndarray:
    """Mood, texture, light, clouds and specks, `(H, W, 3)` int16."""
    tone = np.where(_texture_mask(ground.texture), -ground.texture_contrast // 2, ground.texture_contrast // 2)
    tone = tone + _light(ground.light, ground.light_contrast) + _clouds(draws)
    for _ in range(ground.clutter):
        y, x = draws.integer(0, IMAGE_SIZE - 3), draws.integer(0, IMAGE_SIZE - 3)
        height, width = draws.integer(1, 4), draws.integer(1, 4)
        tone[y : y + height, x : x + width] += _SPECK if draws.integer(0, 2) else -_SPECK
    hue = _MID + ground.mood_contrast * np.array(MOOD_SHIFTS[ground.mood])
    return (tone[..., None] + hue).astype(np.int16)


@lru_cache(maxsize=8)
def _texture_mask(texture: str) -> np.ndarray:
    """Where the darker tone shows, `(H, W)` boolean; a plain ground has one tone."""
    half = _PERIOD // 2
    if texture == "striped":
        return half > (_ROWS + _COLUMNS) % _PERIOD
    if texture == "checked":
        return (_ROWS // half + _COLUMNS // half) % 2 == 0
    if texture == "dotted":
        return (_ROWS % _PERIOD - half) ** 2 + (_COLUMNS % _PERIOD - half) ** 2 <= half + 1
    return np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)


def _light(side: str, contrast: int) -> np.ndarray:
    """A ramp from the lit side to the other, `(H, W)`."""
    along = _COLUMNS if side in ("left", "right") else _ROWS
    ramp = along * contrast // (IMAGE_SIZE - 1) - contrast // 2
    return ramp if side in ("right", "bottom") else -ramp


def _clouds(draws: Draws) -> np.ndarray:
    """Broad smooth patches, `(H, W)`, as in a photograph out of focus; bilinear between few random values."""
    knots = (draws.noise(_CLOUD_CELLS + 1, _CLOUD_CELLS + 1) % (2 * _CLOUD + 1)).astype(np.int64) - _CLOUD
    size = IMAGE_SIZE // _CLOUD_CELLS
    part = np.arange(IMAGE_SIZE) % size
    left = np.arange(IMAGE_SIZE) // size
    across = knots[:, left] * (size - part) + knots[:, left + 1] * part
    return (across[left] * (size - part)[:, None] + across[left + 1] * part[:, None]) // size**2


def _paint_thing(canvas: np.ndarray, thing: Thing, scene: Scene) -> None:
    x, y = thing.centre
    if thing.kind == TILE:
        _paint_tile(canvas, thing, scene.glyph_scale)
        return
    _stamp(canvas, _shape_mask(thing.kind, thing.radius), x, y, OUTLINE)
    _stamp(canvas, _shape_mask(thing.kind, thing.radius - 1), x, y, PAINTS[thing.colour])
    if thing.kind == FACE:
        ink = tuple(max(0, part - scene.face_contrast) for part in PAINTS[thing.colour])
        _stamp(canvas, FACES[thing.detail], x, y, ink)
    else:
        lower = thing.radius // 4 if thing.kind == "triangle" else 0
        _stamp(canvas, mark_mask(thing.detail, scene.mark_size), x, y + lower, INK_PAINTS[thing.ink])


def _paint_tile(canvas: np.ndarray, thing: Thing, scale: int) -> None:
    """A plate as large as its cell, with the glyph in black or white on it."""
    x, y = thing.centre
    _stamp(canvas, np.ones((CELL_SIZE, CELL_SIZE), dtype=bool), x, y, PAINTS[thing.colour])
    _stamp(canvas, glyph_mask(thing.detail, scale), x, y, (0, 0, 0) if thing.colour in _DARK_TYPE else (255, 255, 255))


def _stamp(canvas: np.ndarray, mask: np.ndarray, x: int, y: int, paint_: tuple[int, ...]) -> None:
    """Paint where a mask, centred at (x, y), is true; what falls off the picture is left out."""
    top, left = y - mask.shape[0] // 2, x - mask.shape[1] // 2
    rows, columns = slice(max(0, -top), IMAGE_SIZE - top), slice(max(0, -left), IMAGE_SIZE - left)
    part = mask[rows, columns]
    top, left = max(0, top), max(0, left)
    canvas[top : top + part.shape[0], left : left + part.shape[1]][part] = paint_


@lru_cache(maxsize=64)
def _shape_mask(kind: str, radius: int) -> np.ndarray:
    """Where an object's ink is, `(2 * radius + 1, 2 * radius + 1)` boolean."""
    down, across = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    if kind == "square":
        return np.maximum(abs(across), abs(down)) < radius
    if kind == "triangle":
        return 2 * abs(across) <= down + radius
    if kind == "cross":
        return np.minimum(abs(across), abs(down)) <= radius // 2
    if kind == "diamond":
        return abs(across) + abs(down) <= radius
    return across**2 + down**2 <= radius**2 + 1  # circle and face
