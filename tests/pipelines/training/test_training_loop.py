"""What a training process does before it trains; the rest is in the tests of the trainer."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipelines.training import loop
from pipelines.training.plans import LoopSettings
from pipelines.training.recipe import TrainRecipe
from pipelines.training.signing import KEY_VARIABLE


def test_a_worker_whose_machine_lacks_the_drivers_key_does_not_train(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = TrainRecipe(corpus=str(tmp_path), output=str(tmp_path))
    monkeypatch.setenv(KEY_VARIABLE, "a secret of the driver's")
    sent = pickle.dumps(LoopSettings(recipe=recipe, plans=(), board=None))
    assert b"a secret" not in sent
    monkeypatch.delenv(KEY_VARIABLE)
    monkeypatch.setattr(loop, "quiet_start", lambda: pytest.fail("it began"))
    with pytest.raises(ValueError, match=f"{KEY_VARIABLE} is set where this run was started, but not"):
        loop.train_loop(pickle.loads(sent))


def test_before_a_state_is_looked_for_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    recipe = TrainRecipe(corpus=str(tmp_path), output=str(tmp_path))
    left = tmp_path / "states" / "tune-00000002" / f".qmop-tmp-{'a' * 32}"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a part")
    assert loop._found_state(LoopSettings(recipe=recipe, plans=(), board=None)).uri is None
    assert not left.exists()
