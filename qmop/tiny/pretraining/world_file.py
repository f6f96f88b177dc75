"""A world in a file, so that an interrupted run need not render it again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from qmop.tiny.pretraining.world import IMAGE_CLASSES, PATCH_CLASSES, Texts, World

_BEFORE_TURNS = 2  # caption and short caption come before questions and answers


def save_world(world: World, path: Path) -> None:
    """Write a world as plain arrays; a half-written file is never taken for one."""
    sequences = [_sequences(texts) for texts in world.texts]
    focus = [np.array(cells, dtype=np.int16) for texts in world.texts for cells in texts.focus]
    arrays = {
        "pixels": world.pixels,
        **{f"patches_{name}": world.patches[name] for name in PATCH_CLASSES},
        **{f"images_{name}": world.images[name] for name in IMAGE_CLASSES},
        "turns": np.array([len(texts.questions) for texts in world.texts]),
        **_flat("words", [one for row in sequences for one in row]),
        **_flat("focus", focus),
    }
    draft = path.with_name(f".{path.name}")
    with draft.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type] # its stubs take the names for options
    draft.replace(path)


def load_world(path: Path) -> World:
    """Read a world back."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    words, focus = _cut(arrays, "words"), _cut(arrays, "focus")
    return World(
        pixels=arrays["pixels"],
        patches={name: arrays[f"patches_{name}"] for name in PATCH_CLASSES},
        images={name: arrays[f"images_{name}"] for name in IMAGE_CLASSES},
        texts=[_texts(words, focus, int(turns)) for turns in arrays["turns"]],
    )


def _sequences(texts: Texts) -> list[np.ndarray]:
    return [texts.caption, texts.short, *texts.questions, *texts.answers]


def _texts(words: Iterator[np.ndarray], focus: Iterator[np.ndarray], turns: int) -> Texts:
    rows = [next(words) for _ in range(_BEFORE_TURNS + 2 * turns)]
    return Texts(
        caption=rows[0],
        short=rows[1],
        questions=tuple(rows[_BEFORE_TURNS : _BEFORE_TURNS + turns]),
        answers=tuple(rows[_BEFORE_TURNS + turns :]),
        focus=tuple(tuple(next(focus).tolist()) for _ in range(turns)),
    )


def _flat(name: str, rows: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Sequences end to end, and where each ends."""
    rows = list(rows)
    return {name: np.concatenate(rows), f"{name}_ends": np.cumsum([len(row) for row in rows])}


def _cut(arrays: dict[str, np.ndarray], name: str) -> Iterator[np.ndarray]:
    ends = [0, *arrays[f"{name}_ends"].tolist()]
    return (arrays[name][first:last] for first, last in pairwise(ends))
