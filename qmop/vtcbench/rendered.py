"""The rendered suite: balanced items drawn from a seed, and the training samples drawn from other seeds."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from qmop.vtcbench.dimensions import FAMILIES, Asked
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.items import Item
from qmop.vtcbench.painting import encode_png, paint
from qmop.vtcbench.scene import Scene, caption, random_scene

SUITE_SPLIT, TRAIN_SPLIT = "suite", "train"


@dataclass(frozen=True, kw_only=True)
class RenderedItem:
    """An item with its picture, PNG bytes."""

    item: Item
    image: bytes


@dataclass(frozen=True, kw_only=True)
class RenderedScene:
    """A picture with a dense caption and question-answer pairs, for training."""

    key: str
    pixels: np.ndarray
    caption: str
    turns: tuple[Asked, ...]
    scene: Scene


def suite(seed: int, count: int) -> Iterator[RenderedItem]:
    """`count` items over all families in turn, each a function of `(seed, position)` alone."""
    for position in range(count):
        family = FAMILIES[position % len(FAMILIES)]
        draws = Draws(seed, SUITE_SPLIT, position)
        scene, asked = family.build(draws)
        item = Item(
            key=f"{family.task}-{seed}-{position:06d}",
            question=asked.question,
            answers=(asked.answer,),
            dimension=family.dimension,
            task=family.task,
            choices=family.answers,
            difficulty=asked.difficulty,
        )
        yield RenderedItem(item=item, image=encode_png(paint(scene, draws)))


def suite_digest(items: Iterator[RenderedItem] | list[RenderedItem]) -> str:
    """SHA-256 over canonical JSON and pixels of every item, in order.

    Pixels, not files: how a picture is compressed differs between versions of the compressor.
    """
    digest = hashlib.sha256()
    for rendered in items:
        with Image.open(io.BytesIO(rendered.image)) as picture:
            pixels = picture.convert("RGB")
        digest.update(rendered.item.to_json())
        digest.update(f"{pixels.width}x{pixels.height}".encode())
        digest.update(pixels.tobytes())
    return digest.hexdigest()


def training_scene(seed: int, position: int) -> RenderedScene:
    """The training picture at a position: half are built around a family, half are free; every family is asked."""
    draws = Draws(seed, TRAIN_SPLIT, position)
    family = FAMILIES[position % len(FAMILIES)]
    scene = random_scene(draws)
    turns: list[Asked] = []
    if draws.integer(0, 2):
        scene, asked = family.build(draws)
        turns.append(asked)
    turns += [turn for other in FAMILIES if (turn := other.ask(scene, draws)) is not None]
    unique = {turn.question: turn for turn in turns}
    return RenderedScene(
        key=f"scene-{seed}-{position:07d}",
        pixels=paint(scene, draws),
        caption=caption(scene),
        turns=tuple(draws.shuffled(list(unique.values()))),
        scene=scene,
    )
