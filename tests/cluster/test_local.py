"""Files beside their final name, and what killed writers leave of them; the rest stands in the tests of storage."""

from __future__ import annotations

import fcntl
import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import local, storage

ROOT = Path(__file__).resolve().parents[2]
_WRITER = """
import io, os, signal, sys
from pathlib import Path
from cluster.local import finished_beside
with finished_beside(Path(sys.argv[1], "deep", "a"), io.BytesIO(b"x" * 1000)) as temporary:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_deleted_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    storage.write_atomic(tmp_path / "deep" / "kept", b"1")
    (tmp_path / "deep" / ".qmop-tmp-kept.lock").touch()  # of replace_if_match
    done = subprocess.run([sys.executable, "-c", _WRITER, str(tmp_path)], check=False, cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "deep").iterdir())) == 3
    with local.finished_beside(tmp_path / "deep" / "b", io.BytesIO(b"2")) as temporary:
        assert storage.remove_abandoned(tmp_path) == 1
        temporary.replace(tmp_path / "deep" / "b")
    assert sorted(entry.name for entry in (tmp_path / "deep").iterdir()) == [".qmop-tmp-kept.lock", "b", "kept"]
    assert (tmp_path / "deep" / "b").read_bytes() == b"2"
    assert storage.remove_abandoned(tmp_path) == storage.remove_abandoned(tmp_path / "none") == 0
    assert storage.remove_abandoned("s3://bucket/a") == 0


def test_a_writer_whose_file_is_taken_for_abandoned_before_its_lock_takes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = fcntl.flock, []

    def slow(stream: object, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            monkeypatch.setattr(fcntl, "flock", real)
            assert storage.remove_abandoned(tmp_path) == 1
            monkeypatch.setattr(fcntl, "flock", slow)
        real(stream, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", slow)
    storage.write_atomic(tmp_path / "a", b"1")
    assert calls == [fcntl.LOCK_EX, fcntl.LOCK_EX]
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a", b"1")]


def test_a_file_system_without_locks_is_written_to_and_nothing_counts_as_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(_stream: object, _how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    storage.write_atomic(tmp_path / "a", b"1")
    rest = tmp_path / f".qmop-tmp-{'0' * 32}"
    rest.touch()
    assert storage.remove_abandoned(tmp_path) == 0
    assert rest.exists()
