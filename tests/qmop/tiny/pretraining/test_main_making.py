"""The whole recipe at toy size: every part is made once, judged, and ends in a checkpoint with a true card."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qmop.loading import load
from qmop.tiny.pretraining import __main__ as making
from qmop.tiny.pretraining.language import LanguageRecipe
from qmop.tiny.pretraining.loop import Schedule
from qmop.tiny.pretraining.tower import TowerRecipe
from qmop.vtcbench.dimensions import FAMILIES

TOWER = TowerRecipe(schedule=Schedule(steps=2), batch=2)
LANGUAGE = LanguageRecipe(schedule=Schedule(steps=2), phases=((0.5, 16, 2), (0.5, 144, 1)))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(making, "TowerRecipe", lambda: TOWER)
    monkeypatch.setattr(making, "LanguageRecipe", lambda: LANGUAGE)
    monkeypatch.setattr(making, "BLIND", replace(LANGUAGE, phases=((1.0, 1, 2),), captions=0.0))
    monkeypatch.setattr(making, "BLIND_QUESTIONS", 5)
    monkeypatch.setattr(making, "_PROGRESS_ITEMS", 4)
    monkeypatch.setattr(making, "_SHOWN_TO_JUDGE", 4)
    command = ["x", "--output", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", [*command, "--pictures", "6", "--items", "20"])
    return tmp_path


def test_the_recipe_ends_in_a_checkpoint_with_a_true_card(toy: Path) -> None:
    making.main()
    card = json.loads((toy / "out" / "base.json").read_text())
    data = (toy / "out" / "model.safetensors").read_bytes()
    assert card["model_sha256"] == hashlib.sha256(data).hexdigest()
    assert (card["pictures"], card["items"], card["tower"]["schedule"]["steps"]) == (6, 20, 2)
    assert set(card["blind_accuracy"]) == {family.task for family in FAMILIES}
    assert [point["step"] for point in card["curve"]["towers"]] == [2]
    assert {"micro", "GU"} <= card["curve"]["language"][0].keys()
    model, processor = load(toy / "out")
    assert model.model.multi_modal_projector.token_count() == processor.visual_tokens == 144
    making.main()
    assert (toy / "out" / "model.safetensors").read_bytes() == data
    assert len(json.loads((toy / "out" / "base.json").read_text())["curve"]["towers"]) == 1
