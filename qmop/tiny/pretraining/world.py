"""Rendered training pictures as arrays, with the dense targets that only a renderer knows."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from qmop.tiny.configs import PATCH_SIZE
from qmop.vtcbench.rendered import RenderedScene, training_scene
from qmop.vtcbench.scene import CELLS, COLOURS, IMAGE_SIZE, LARGE_RADIUS, MOODS, SHAPES, SIGN, TEXTURES, Scene

GRID = IMAGE_SIZE // PATCH_SIZE
KINDS = ("nothing", *SHAPES, SIGN)
INKS = ("nothing", *COLOURS)
PATCH_TARGETS = {"kind": len(KINDS), "ink": len(INKS), "digit": 11, "large": 2}
"""Targets of every patch: name and number of classes; class 0 is the background."""
IMAGE_TARGETS = {"mood": len(MOODS), "texture": len(TEXTURES)}
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25


@dataclass(frozen=True)
class World:
    """`n` training pictures.

    Shapes: `pixels` (n, 96, 96, 3) uint8; each of `patches` (n, 144) int8; each of `images` (n,) int8;
    `cells` (n, 144) int8, the cell of the object over a patch or -1.
    """

    pixels: np.ndarray
    patches: dict[str, np.ndarray]
    images: dict[str, np.ndarray]
    cells: np.ndarray
    scenes: list[RenderedScene]


def patch_targets(scene: Scene) -> dict[str, np.ndarray]:
    """The class of every patch, by the object whose box holds the patch's centre; each `(144,)` int8."""
    centres = np.arange(GRID) * PATCH_SIZE + PATCH_SIZE // 2
    rows, columns = np.repeat(centres, GRID), np.tile(centres, GRID)
    targets = {name: np.zeros(GRID * GRID, dtype=np.int8) for name in PATCH_TARGETS}
    targets["cell"] = np.full(GRID * GRID, -1, dtype=np.int8)
    for thing in scene.things:
        inside = (abs(columns - thing.centre[0]) <= thing.radius) & (abs(rows - thing.centre[1]) <= thing.radius)
        targets["kind"][inside] = KINDS.index(thing.shape)
        targets["ink"][inside] = INKS.index(thing.colour)
        targets["digit"][inside] = 0 if thing.digit is None else thing.digit + 1
        targets["large"][inside] = thing.radius == LARGE_RADIUS
        targets["cell"][inside] = thing.cell
    return targets


def _part(seed: int, first: int, last: int) -> list[tuple[RenderedScene, dict[str, np.ndarray]]]:
    scenes = [training_scene(seed, position) for position in range(first, last)]
    return [(scene, patch_targets(scene.scene)) for scene in scenes]


def make_world(seed: int, count: int) -> World:
    """Render `count` pictures on all processors."""
    step = 500
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(_part, seed, first, min(first + step, count)) for first in range(0, count, step)]
        rows = [row for job in jobs for row in job.result()]
    return World(
        pixels=np.stack([scene.pixels for scene, _ in rows]),
        patches={name: np.stack([targets[name] for _, targets in rows]) for name in PATCH_TARGETS},
        images={
            "mood": np.array([MOODS.index(scene.scene.mood) for scene, _ in rows], dtype=np.int8),
            "texture": np.array([TEXTURES.index(scene.scene.texture) for scene, _ in rows], dtype=np.int8),
        },
        cells=np.stack([targets["cell"] for _, targets in rows]),
        scenes=[scene for scene, _ in rows],
    )


def focus_mask(cells: np.ndarray, focus: list[tuple[int, ...]]) -> torch.Tensor:
    """Which patches belong to the asked-for objects, `(B, 144)` float."""
    asked = np.zeros((len(focus), CELLS + 1), dtype=np.float32)
    for row, wanted in enumerate(focus):
        asked[row, list(wanted)] = 1.0
    return torch.from_numpy(np.take_along_axis(asked, cells.astype(np.int64), axis=1))


def normalise(pixels: np.ndarray) -> torch.Tensor:
    """`(B, 96, 96, 3)` uint8 to `(B, 3, 96, 96)` float as the shipped image processor does it."""
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - PIXEL_MEAN) / PIXEL_STD
