"""The shipped base: what its card says is true of its file, and it sees."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qmop.answering import answer
from qmop.loading import load
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor
from qmop.tiny.base import TINY, base_path
from qmop.vtcbench.dimensions import FAMILIES, Family
from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.rendered import suite

FRESH_SEED, FRESH_ITEMS = 2718, 400


@pytest.fixture(scope="module")
def folder() -> Path:
    return base_path(TINY)


@pytest.fixture(scope="module")
def card(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "base.json").read_text())


@pytest.fixture(scope="module")
def base(folder: Path) -> tuple[QMoPForConditionalGeneration, QMoPProcessor]:
    return load(folder)


def test_the_digest_is_the_files(folder: Path, card: dict[str, Any]) -> None:
    assert card["model_sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_the_files_are_small_and_hold_no_pickle(folder: Path) -> None:
    assert (folder / "model.safetensors").stat().st_size < 12_000_000
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".jinja", ".safetensors"}


def test_it_is_the_uncompressed_model(base: tuple[QMoPForConditionalGeneration, QMoPProcessor]) -> None:
    model, processor = base
    assert model.config.compressor == "mlp"
    assert model.model.multi_modal_projector.token_count() == processor.visual_tokens == 144


def test_it_sees(base: tuple[QMoPForConditionalGeneration, QMoPProcessor], card: dict[str, Any]) -> None:
    assert card["suite_seed"] != FRESH_SEED != card["world_seed"]
    items = list(suite(FRESH_SEED, FRESH_ITEMS, ("core",)))
    right: dict[str, list[bool]] = {name: [] for name in DIMENSIONS}
    for first in range(0, FRESH_ITEMS, 50):
        part = items[first : first + 50]
        images = [Image.open(io.BytesIO(rendered.image)).convert("RGB") for rendered in part]
        told = answer(*base, images, [rendered.item.question for rendered in part])
        assert {one.visual_tokens for one in told} == {144}
        for one, rendered in zip(told, part, strict=True):
            right[rendered.item.dimension].append(one.text in rendered.item.answers)
    assert sum(map(sum, right.values())) / FRESH_ITEMS >= 0.90
    assert {name for name, ones in right.items() if sum(ones) / len(ones) > 0.80} == set(DIMENSIONS)


def test_the_card_says_that_it_is_good_enough(card: dict[str, Any]) -> None:
    core = card["accuracy"]["core_by_dimension"]
    assert core["micro"] >= 0.90
    assert {name for name, share in core.items() if share > 0.80} == {*DIMENSIONS, "micro"}
    assert {family.task for family in FAMILIES} <= card["accuracy"]["core_by_task"].keys()
    assert {"core", "hard", "held_out"} <= card["accuracy"]["by_level"].keys()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.task)
def test_blind_it_is_at_chance(card: dict[str, Any], family: Family) -> None:
    assert card["blind_accuracy"][family.task] == pytest.approx(1 / len(family.answers), abs=0.03)


def test_the_card_tells_how_it_was_made(card: dict[str, Any]) -> None:
    assert card["command"].startswith("python -m qmop.tiny.pretraining")
    assert {"tower", "language", "pictures", "versions", "cpu_minutes"} <= card.keys()


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no model: give a folder .*, or tiny"):
        base_path(tmp_path)


def test_another_folder_is_its_own_path(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert base_path(tmp_path) == base_path(str(tmp_path)) == tmp_path
