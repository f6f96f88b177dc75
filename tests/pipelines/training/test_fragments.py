"""A state written under any ZeRO stage goes on under any other, on any number of processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.pipelines.training.zero_states import WAYS

pytestmark = pytest.mark.pipeline
_ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Losses and states of two processes that wrote, and losses of one and of three that read."""
    folder = tmp_path_factory.mktemp("states")
    command = [sys.executable, "-m", "tests.pipelines.training.zero_states", str(folder)]
    process = subprocess.Popen(
        command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said[-4000:]
    return folder


def left_by(folder: Path, mode: str, world: int) -> dict[str, list[float]]:
    """What rank 0 left."""
    found: dict[str, list[float]] = json.loads((folder / f"{mode}-{world}.json").read_text())
    return found


def test_a_state_goes_on_under_any_stage_and_number_of_processes(folder: Path) -> None:
    undisturbed = left_by(folder, "write", 2)
    assert len(undisturbed) == len(WAYS)
    for world in (1, 3):
        found = left_by(folder, "read", world)
        assert len(found) == 4 * len(WAYS)
        for name, losses in found.items():
            written = name.split(">")[0]
            tolerance = 1e-5 if written.startswith("fp32") else 0.03
            assert losses == pytest.approx(undisturbed[written], abs=tolerance), f"{name} on {world} processes"
    held = {path.name for path in (folder / "fp32-2").rglob("*.safetensors")}
    assert held == {"part-00000-of-00002.safetensors", "part-00001-of-00002.safetensors"}
