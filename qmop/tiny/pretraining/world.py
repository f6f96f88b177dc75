"""Rendered training pictures as arrays, with the dense targets that only a renderer knows."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from qmop.tiny.configs import PATCH_SIZE
from qmop.tiny.tokenizer import language_tokenizer
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.rendered import RenderedScene, training_scene
from qmop.vtcbench.scene import CELLS, IMAGE_SIZE, LATTICE, Scene, describe
from qmop.vtcbench.words import COLOURS, DETAILS, INKS, KINDS, MOODS, PLACES, SIDES, TEXTURES

GRID = IMAGE_SIZE // PATCH_SIZE
PATCHES = GRID * GRID
NOTHING = "nothing"
PATCH_CLASSES: dict[str, tuple[str, ...]] = {
    "kind": (NOTHING, *KINDS),
    "colour": (NOTHING, *COLOURS),
    "detail": (NOTHING, *DETAILS),
    "ink": (NOTHING, *INKS),
    "size": (NOTHING, "small", "large"),
}
"""Targets of every patch and their classes; the first is the background."""
IMAGE_CLASSES: dict[str, tuple[str, ...]] = {"mood": MOODS, "texture": TEXTURES, "light": SIDES}
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
PICTURED = 4
"""Objects that a short caption names."""
_ROUNDS = 2
_PART = 250


@dataclass(frozen=True, kw_only=True)
class World:
    """`n` training pictures.

    Shapes: `pixels` (n, 96, 96, 3) uint8; each of `patches` (n, 144) int8; each of `images` (n,) int8; `texts` one
    row of `Texts` per picture.
    """

    pixels: np.ndarray
    patches: dict[str, np.ndarray]
    images: dict[str, np.ndarray]
    texts: list[Texts]

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """What is said about a picture, as ids without begin and end tokens."""

    caption: np.ndarray
    short: np.ndarray
    """Ground and a few objects, for contrast."""
    questions: tuple[np.ndarray, ...]
    answers: tuple[np.ndarray, ...]
    focus: tuple[tuple[int, ...], ...]
    """Cells that each answer depends on."""


def patch_targets(scene: Scene) -> dict[str, np.ndarray]:
    """The class of every patch, by the object whose cell it lies in; each `(144,)` int8."""
    cells = {name: np.zeros(CELLS, dtype=np.int8) for name in PATCH_CLASSES}
    for thing in scene.things:
        said = {
            "kind": thing.kind,
            "colour": thing.colour,
            "detail": thing.detail,
            "ink": thing.ink or NOTHING,
            "size": "large" if thing.large else "small",
        }
        for name, classes in PATCH_CLASSES.items():
            cells[name][list(thing.cells)] = classes.index(said[name])
    return {name: values[patch_cells()] for name, values in cells.items()}


@lru_cache(maxsize=1)
def patch_cells() -> np.ndarray:
    """The cell that each patch lies in, `(144,)`."""
    line = np.arange(GRID) * LATTICE // GRID
    return (line[:, None] * LATTICE + line[None, :]).ravel()


def focus_mask(focus: Sequence[Sequence[int]]) -> torch.Tensor:
    """Which patches lie in the given cells, `(B, 144)` float."""
    asked = np.zeros((len(focus), CELLS), dtype=np.float32)
    for row, wanted in enumerate(focus):
        asked[row, list(wanted)] = 1.0
    return torch.from_numpy(asked[:, patch_cells()])


def normalise(pixels: np.ndarray) -> torch.Tensor:
    """`(B, 96, 96, 3)` uint8 to `(B, 3, 96, 96)` float as the shipped image processor does it."""
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - PIXEL_MEAN) / PIXEL_STD


def short_caption(scene: Scene, draws: Draws) -> str:
    """The ground and a few of the objects in words, short enough for the text tower."""
    few = draws.sample(scene.things, min(PICTURED, len(scene.things)))
    things = " , ".join(f"{PLACES[thing.place]} {describe(thing)}" for thing in few)
    return f"a {scene.ground.mood} {scene.ground.texture} picture . {things}"


def texts_of(made: RenderedScene, tokenizer: PreTrainedTokenizerFast, draws: Draws) -> Texts:
    """Everything said about a picture, in ids."""

    def ids(text: str) -> np.ndarray:
        return np.array(tokenizer.encode(text, add_special_tokens=False), dtype=np.int16)

    return Texts(
        caption=ids(made.caption),
        short=ids(short_caption(made.scene, draws)),
        questions=tuple(ids(turn.question) for turn in made.turns),
        answers=tuple(ids(turn.answer) for turn in made.turns),
        focus=tuple(turn.focus for turn in made.turns),
    )


def make_world(seed: int, count: int, say: Callable[[str], None] = lambda _: None) -> World:
    """Render `count` pictures on all processors."""
    pixels = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    patches = {name: np.empty((count, PATCHES), dtype=np.int8) for name in PATCH_CLASSES}
    images = {name: np.empty(count, dtype=np.int8) for name in IMAGE_CLASSES}
    texts: list[Texts] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        starts = range(0, count, _PART)
        for start, part in zip(starts, pool.map(_part, *_jobs(seed, starts, count)), strict=True):
            stop = start + len(part.texts)
            pixels[start:stop] = part.pixels
            for whole, piece in ((patches, part.patches), (images, part.images)):
                for name in whole:
                    whole[name][start:stop] = piece[name]
            texts += part.texts
            if stop % (8 * _PART) == 0 or stop == count:
                say(f"pictures {stop}/{count}")
    return World(pixels=pixels, patches=patches, images=images, texts=texts)


def _jobs(seed: int, starts: range, count: int) -> tuple[list[int], list[int], list[int]]:
    return [seed] * len(starts), list(starts), [min(start + _PART, count) for start in starts]


def _part(seed: int, first: int, last: int) -> World:
    tokenizer = language_tokenizer()
    scenes = [training_scene(seed, position, _ROUNDS) for position in range(first, last)]
    targets = [patch_targets(made.scene) for made in scenes]
    return World(
        pixels=np.stack([made.pixels for made in scenes]),
        patches={name: np.stack([target[name] for target in targets]) for name in PATCH_CLASSES},
        images={
            name: np.array([words.index(getattr(made.scene.ground, name)) for made in scenes], dtype=np.int8)
            for name, words in IMAGE_CLASSES.items()
        },
        texts=[texts_of(made, tokenizer, Draws(seed, "texts", first + number)) for number, made in enumerate(scenes)],
    )
