"""The rendered suite: balanced items drawn from a seed, and the training samples drawn from other seeds."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from qmop.vtcbench.composing import LEVELS, Level, Wish, compose, fillers, total
from qmop.vtcbench.dimensions import FAMILIES, Asked, Family, Plan
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.items import Item
from qmop.vtcbench.painting import encode_png, paint
from qmop.vtcbench.scene import Scene, caption

SUITE_SPLIT, TRAIN_SPLIT = "suite", "train"
ROTA: tuple[Level, ...] = ("core", "core", "core", "hard", "held_out")
"""Levels of the suite, one for each round over all families."""
_HARD_IN = 8  # one training picture in so many is of the hard level
_LARGE_IN = 3  # and one free picture in so many has a large object
_GROUND_IN = 4  # and a question about the ground, which every picture can answer, is asked in one of so many
_BUILT = FAMILIES + 2 * tuple(family for family in FAMILIES if family.dimension == "GU")
"""Families that training pictures are built around; free ones seldom answer a question of the whole."""


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


def suite(seed: int, count: int, levels: tuple[Level, ...] = ROTA) -> Iterator[RenderedItem]:
    """`count` items over all families in turn, each a function of `(seed, position)` alone.

    Args:
        seed: of the suite.
        count: items.
        levels: one for each round over the families, from the start again when used up.
    """
    for position in range(count):
        family, level, draws = _at(seed, position, levels)
        scene, asked = family.build(draws, level)
        item = Item(
            key=f"{family.task}-{level}-{seed}-{position:06d}",
            question=asked.question,
            answers=(asked.answer,),
            dimension=family.dimension,
            task=family.task,
            choices=family.answers,
            difficulty=asked.difficulty,
            level=level,
            focus=asked.focus,
        )
        yield RenderedItem(item=item, image=encode_png(paint(scene, draws)))


def questions(seed: int, count: int, task: str | None = None) -> Iterator[tuple[Family, str, str]]:
    """Family, question and answer of every position of a suite, or of those of one task, with no scene drawn.

    Some thirty times as fast as `suite`, which draws the same: for whoever looks at words alone.
    """
    for position in range(count):
        if task is None or FAMILIES[position % len(FAMILIES)].task == task:
            family, level, draws = _at(seed, position, ROTA)
            plan: Plan = family.pose(draws, level)
            yield family, family.template.format(*plan.words), plan.answer


def _at(seed: int, position: int, levels: tuple[Level, ...]) -> tuple[Family, Level, Draws]:
    """What is asked at a position, how hard, and its stream."""
    turn, number = divmod(position, len(FAMILIES))
    return FAMILIES[number], levels[turn % len(levels)], Draws(seed, SUITE_SPLIT, position)


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


def training_scene(seed: int, position: int, rounds: int = 1) -> RenderedScene:
    """The training picture at a position: half are built around a family, half are free.

    Every family asks what it can, those that ask about the ground less often.

    No combination that is held out ever stands in one.

    Args:
        seed: of the training data.
        position: of the picture.
        rounds: how often every family may ask it.
    """
    draws = Draws(seed, TRAIN_SPLIT, position)
    family = _BUILT[position // 2 % len(_BUILT)]
    level: Level = LEVELS[1] if draws.integer(0, _HARD_IN) == 0 else LEVELS[0]
    turns: list[Asked] = []
    if position % 2:
        scene, asked = family.build(draws, level)
        turns.append(asked)
    else:
        scene = free_scene(draws, level)
    askers = [other for other in FAMILIES * rounds if other.local or draws.integer(0, _GROUND_IN) == 0]
    turns += [turn for other in askers if (turn := other.ask(scene, draws)) is not None]
    unique = {turn.question: turn for turn in turns}
    return RenderedScene(
        key=f"scene-{seed}-{position:07d}",
        pixels=paint(scene, draws),
        caption=caption(scene),
        turns=tuple(draws.shuffled(list(unique.values()))),
        scene=scene,
    )


def free_scene(draws: Draws, level: Level) -> Scene:
    """A scene built around no question."""
    large = [Wish(large=True)] if draws.integer(0, _LARGE_IN) == 0 else []
    return compose(draws, [*large, *fillers(draws, total(draws, level) - len(large))], level)
