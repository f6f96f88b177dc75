"""Pictures and questions: drawn once, looked at once, and the same ones for everybody."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmop.tiny.base import base_path
from qmop.tiny.comparison import sights
from qmop.tiny.comparison.material import Material, _readers, _suite_path, _world_path, base_digest, make_material
from qmop.tiny.comparison.rows import ROWS, Settings
from qmop.tiny.pretraining.world_file import load_world
from qmop.tiny.tokenizer import language_tokenizer
from qmop.vtcbench.rendered import suite_digest
from qmop.vtcbench.suite import read_shard
from tests.qmop.tiny.comparison.conftest import SEEN, SETTINGS


def test_item_i_is_the_one_question_about_picture_i(material: Material) -> None:
    words = language_tokenizer()
    assert len(material.items) == len(material.exam.by_picture) == material.suite.count == 40
    for place, (item, pairs) in enumerate(zip(material.items, material.exam.by_picture, strict=True)):
        (pair,) = pairs
        assert pair.picture == place
        assert words.decode(pair.question) == item.question
        assert words.decode(pair.answer) == item.answers[0]


def test_the_items_are_those_of_the_suite(material: Material, work: Path) -> None:
    folder = _suite_path(SETTINGS, work)
    drawn = [rendered for shard in material.suite.shards for rendered in read_shard(folder, shard)]
    assert [rendered.item for rendered in drawn] == material.items
    assert suite_digest(drawn) == material.suite.digest


def test_what_is_tuned_on_is_the_world(material: Material, work: Path) -> None:
    world = load_world(_world_path(SETTINGS, work))
    assert len(world) == len(material.train.by_picture) == 60
    for place, (texts, pairs) in enumerate(zip(world.texts, material.train.by_picture, strict=True)):
        assert len(pairs) == len(texts.questions) > 1
        assert {pair.picture for pair in pairs} == {place}
        for pair, question, answer in zip(pairs, texts.questions, texts.answers, strict=True):
            assert np.array_equal(pair.question, question)
            assert np.array_equal(pair.answer, answer)


def test_a_batch_is_of_different_pictures_and_reaches_every_question(material: Material) -> None:
    train = material.train
    drawn = [train.draw(np.random.default_rng(seed), 20) for seed in range(400)]
    assert all(len({pair.picture for pair in pairs}) == 20 for pairs in drawn)
    asked = {(pair.picture, pair.question.tobytes()) for pairs in drawn for pair in pairs}
    assert asked == {(pair.picture, pair.question.tobytes()) for pairs in train.by_picture for pair in pairs}
    again = train.draw(np.random.default_rng(3), 20)
    assert [(pair.picture, pair.question.tobytes()) for pair in again] == [
        (pair.picture, pair.question.tobytes()) for pair in drawn[3]
    ]


def test_nothing_is_drawn_or_looked_at_twice(material: Material, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    monkeypatch.setattr(sights, "look", lambda *_: pytest.fail("looked again"))
    said: list[str] = []
    again = make_material(SETTINGS, work, said.append, [(ROWS[name], 16) for name in SEEN])
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()} == before
    assert again.items == material.items


def test_methods_that_show_the_tower_the_same_pictures_share_a_pass() -> None:
    rows = [(ROWS[name], tokens) for name in ("qmop", "prune", "downsample", "random") for tokens in (16, 36)]
    groups = _readers(SETTINGS, rows)
    assert [[view.declaration.name for view in views] for _, views in groups] == [
        ["qmop", "qmop", "prune", "prune", "random_tokens", "random_tokens"],
        ["downsample"],
        ["downsample"],
    ]
    assert [method.tokens for method, _ in groups] == [16, 16, 36]


@pytest.mark.parametrize("changed", [{"pictures": 61}, {"world_seed": 78}, {"items": 41}, {"suite_seed": 5_001}])
def test_other_pictures_have_other_files(changed: dict[str, Any], tmp_path: Path) -> None:
    other = replace(SETTINGS, **changed)
    kept, found = ([_world_path(one, tmp_path), _suite_path(one, tmp_path)] for one in (SETTINGS, other))
    assert sum(first != second for first, second in zip(kept, found, strict=True)) == 1


def test_a_base_is_known_by_its_weights_wherever_it_lies(material: Material, work: Path, tmp_path: Path) -> None:
    assert material.suite.folder.startswith(str(work))
    copied = tmp_path / "base"
    shutil.copytree(base_path("tiny"), copied)
    elsewhere = Settings(base=str(copied))
    assert base_digest(elsewhere) == base_digest(SETTINGS)
    assert {path.name.rsplit("-", 1)[1] for path in work.glob("sights-*")} == {base_digest(SETTINGS)[:12]}
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert base_digest(elsewhere) != base_digest(SETTINGS)
