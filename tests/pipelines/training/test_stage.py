"""A stage's losses, against those written down."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

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
        for stage, losses in stages.items():
            assert len(set(losses)) == STEPS, "the losses differ from step to step"
            assert found["losses"][recipe][stage] == pytest.approx(losses, rel=tolerance, abs=0.0), (recipe, stage)
