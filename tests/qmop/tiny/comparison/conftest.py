"""The smallest comparison that shows everything: one set of pictures and questions for all tests of the folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from qmop.tiny.comparison.material import Material, make_material
from qmop.tiny.comparison.rows import ROWS, Settings, Unit

SETTINGS = Settings(pictures=60, items=40, warm_steps=2, align_steps=2, tune_steps=3, batch=4)
SEEN = ("qmop", "tokenpacker", "cdpruner", "downsample")
"""Rows that between them read almost everything that a tower offers."""

Say = Callable[[str], None]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the material."""
    return tmp_path_factory.mktemp("comparison") / "material"


@pytest.fixture(scope="session")
def material(work: Path) -> Material:
    """What all runs read, at 16 tokens."""
    return make_material(SETTINGS, work, lambda _: None, [(ROWS[name], 16) for name in SEEN])


@pytest.fixture
def folder(material: Material, work: Path, tmp_path: Path) -> Path:
    """A comparison's folder of its own, whose material is there already."""
    del material
    (tmp_path / "material").symlink_to(work)
    return tmp_path


def unit(name: str, *, tokens: int = 16, seed: int = 0) -> Unit:
    """A run of a row."""
    return Unit(row=ROWS[name], tokens=tokens, seed=seed)
