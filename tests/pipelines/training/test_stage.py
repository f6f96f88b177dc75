"""A stage's losses, against those written down, and what is said of those that are not finite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines.training import stage
from pipelines.training.batches import Batch
from pipelines.training.stage import StageRun, Taken
from tests.pipelines.training.golden_losses import GOLDEN, RECIPES, STEPS


@pytest.mark.timeout(300)
def test_every_recipe_loses_what_it_lost_before() -> None:
    """To the last bit on the machine that wrote them down, within 1e-5 on others."""
    command = [sys.executable, "-m", "tests.pipelines.training.golden_losses"]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = json.loads(done.stdout[done.stdout.index("{") :]), json.loads(GOLDEN.read_text())
    assert set(found["losses"]) == set(RECIPES)
    tolerance = 0.0 if found["machine"] == expected["machine"] else 1e-5
    for recipe, stages in expected["losses"].items():
        for name, losses in stages.items():
            assert len(set(losses)) == STEPS, "the losses differ from step to step"
            assert found["losses"][recipe][name] == pytest.approx(losses, rel=tolerance, abs=0.0), (recipe, name)


def _slot(key: str) -> Batch:
    mask = torch.ones(1, 3, dtype=torch.long)
    return Batch(inputs={"attention_mask": mask}, labels=mask, dummy=False, positions=(0,), keys=(key,))


def _step_of_two(monkeypatch: pytest.MonkeyPatch, own: dict[str, float], others: float, theirs: list[str]) -> None:
    """A step of this process, with one loss by sample, beside another process, with its loss and its suspects."""
    run: Any = object.__new__(StageRun)
    run.plan, run.rounds, run.rank, run.world = SimpleNamespace(name="tune"), len(own), 0, 2
    run.recipe, run.notice = SimpleNamespace(on_nan="stop"), SimpleNamespace(due=lambda _: 0.0)
    run.engine = SimpleNamespace(train=lambda: None, step=lambda: None, backward=lambda _: None)
    run._schedule = lambda _: None
    run._forward = lambda _, part: (torch.tensor(own[part.keys[0]]), None)
    sums: Iterator[list[float]] = iter([[6.0, 12.0, 0.0], [others + sum(own.values())]])
    run._over_processes = lambda _: next(sums)
    monkeypatch.setattr(stage, "from_all", lambda mine: [mine, theirs], raising=False)
    taken: Taken = run._step(6, iter([_slot(key) for key in own]))
    assert taken.loss > 0


def test_a_loss_that_is_not_finite_names_the_slots_it_comes_from_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    nan = float("nan")
    said = r"^the loss of tune step 7 is nan, because of the slots with \['bad'\]: look at these samples, lower"
    with pytest.raises(FloatingPointError, match=said):
        _step_of_two(monkeypatch, {"good": 1.0, "bad": nan}, others=1.0, theirs=[])
    with pytest.raises(FloatingPointError, match=said):
        _step_of_two(monkeypatch, {"good": 1.0, "fine": 2.0}, others=nan, theirs=["bad"])
    with pytest.raises(FloatingPointError, match=r"is inf, because of the slots with \['one', 'other'\]"):
        _step_of_two(monkeypatch, {"one": float("inf"), "good": 1.0}, others=float("inf"), theirs=["other"])
