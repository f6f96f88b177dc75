from __future__ import annotations

from pathlib import Path

import numpy as np

from qmop.tiny.pretraining.world import Texts, make_world
from qmop.tiny.pretraining.world_file import load_world, save_world


def _plain(texts: Texts) -> list[object]:
    said = [texts.caption, texts.short, *texts.questions, *texts.answers]
    return [len(texts.questions), texts.focus, [one.tolist() for one in said]]


def test_a_world_comes_back_from_its_file(tmp_path: Path) -> None:
    world = make_world(4, 9)
    save_world(world, tmp_path / "w.npz")
    again = load_world(tmp_path / "w.npz")
    assert np.array_equal(again.pixels, world.pixels)
    assert {name: part.tolist() for name, part in again.patches.items()} == {
        name: part.tolist() for name, part in world.patches.items()
    }
    assert {name: part.tolist() for name, part in again.images.items()} == {
        name: part.tolist() for name, part in world.images.items()
    }
    assert [_plain(texts) for texts in again.texts] == [_plain(texts) for texts in world.texts]
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz"]
