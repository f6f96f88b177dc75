"""Copies of parts: beside the states where these are local, and gone however their process ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines.training.state_scratch import part_folder
from pipelines.training.states import forget_unfinished

ROOT = Path(__file__).resolve().parents[3]
_KILLED = """
import os, signal, sys
from pipelines.training.state_scratch import part_folder
with part_folder(sys.argv[1]) as folder:
    (folder / "part").write_bytes(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def _left_by_a_killed_process(states: str, folder: Path) -> Path:
    """The one folder that a process leaves which is killed while it writes a part."""
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", _KILLED, states], env=environment, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    (left,) = folder.glob("qmop-state-*")
    assert (left / "part").stat().st_size == 1000
    return left


def test_with_local_states_copies_lie_below_them(tmp_path: Path) -> None:
    left = _left_by_a_killed_process(str(tmp_path), tmp_path)
    with part_folder(str(tmp_path)) as folder:
        assert folder.parent == tmp_path
        assert not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_begins_removes_the_copies_of_machines_that_are_gone(tmp_path: Path) -> None:
    left = _left_by_a_killed_process(str(tmp_path), tmp_path)
    elsewhere = left.rename(tmp_path / "qmop-state-another-host-x")
    forget_unfinished(str(tmp_path))
    assert not list(elsewhere.iterdir())


def test_with_states_in_s3_copies_lie_among_the_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = _left_by_a_killed_process("s3://bucket/states", tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with part_folder("s3://bucket/states") as folder:
        assert folder.parent == tmp_path
        assert not left.exists()
    assert list(tmp_path.iterdir()) == []
