"""A state written under any ZeRO stage goes on under any other, on any number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.ports import free_port
from tests.pipelines.training.zero_states import WAYS

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(240)]
_ROOT = Path(__file__).resolve().parents[3]


def together(folder: Path, mode: str, world: int) -> dict[str, list[float]]:
    """Run so many processes to their end; what rank 0 left."""
    port = str(free_port())
    shared = os.environ | {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "tests.pipelines.training.zero_states", str(folder), mode]
    started = [
        subprocess.Popen(
            command,
            cwd=_ROOT,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=200)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0] * world, "\n".join(said)[-4000:]
    found: dict[str, list[float]] = json.loads((folder / f"{mode}-{world}.json").read_text())
    return found


def test_a_state_goes_on_under_any_stage_and_number_of_processes(tmp_path: Path) -> None:
    undisturbed = together(tmp_path, "write", 2)
    assert len(undisturbed) == len(WAYS)
    for world in (1, 3):
        found = together(tmp_path, "read", world)
        assert len(found) == 4 * len(WAYS)
        for name, losses in found.items():
            written = name.split(">")[0]
            tolerance = 1e-5 if written.startswith("fp32") else 0.03
            assert losses == pytest.approx(undisturbed[written], abs=tolerance), f"{name} on {world} processes"
    held = {path.name for path in (tmp_path / "fp32-2").rglob("*.safetensors")}
    assert held == {"part-00000-of-00002.safetensors", "part-00001-of-00002.safetensors"}
