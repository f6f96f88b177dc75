from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.scratch import owned_folder, scratch_folder

_HOLDER = "from cluster.scratch import scratch_folder\nwith scratch_folder() as f:\n    print(f, flush=True); input()"


@pytest.fixture(autouse=True)
def short_parent(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A parent folder of our own, short enough to be used."""
    tmp_path_factory.getbasetemp()  # pytest must not put its own folders into ours
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as parent:
        monkeypatch.setattr(tempfile, "tempdir", parent)
        monkeypatch.setenv("TMPDIR", parent)
        yield Path(parent)


def test_the_folder_is_private_short_and_gone_afterwards(short_parent: Path) -> None:
    with scratch_folder() as folder:
        (folder / "a").write_bytes(b"")
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(str(folder)) <= 40
    assert list(short_parent.iterdir()) == []


def test_a_long_temporary_folder_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 60)))
    with scratch_folder() as folder:
        assert folder.parent == Path("/tmp")
    assert not folder.exists()


def test_a_killed_owners_folder_is_removed_and_a_living_owners_is_not(short_parent: Path) -> None:
    holders = [_holder() for _ in range(2)]
    folders = [Path(holder.stdout.readline().strip()) for holder in holders]  # type: ignore[union-attr]
    assert all(folder.parent == short_parent for folder in folders)
    holders[0].kill()
    holders[0].wait()
    assert folders[0].exists()
    with scratch_folder():
        assert not folders[0].exists()
        assert folders[1].exists()
    holders[1].communicate("\n")
    assert not folders[1].exists()


def test_a_folder_without_a_living_owner_is_removed_only_where_its_name_is_ours(tmp_path: Path) -> None:
    for name in ("ours[1]-dead", "ours1-dead", "ours[1]-new"):
        (tmp_path / "deep" / name).mkdir(parents=True)
        (tmp_path / "deep" / name / "owner.lock").touch()
    (tmp_path / "deep" / "ours[1]-new" / "owner.lock").unlink()  # not locked yet
    with owned_folder(tmp_path / "deep", "ours[1]-") as folder:
        (folder / "part").write_bytes(b"1")
        with owned_folder(tmp_path / "deep", "ours[1]-"):
            assert (folder / "part").read_bytes() == b"1"
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["ours1-dead", "ours[1]-new"]


def test_on_a_file_system_without_locks_a_folder_is_made_and_none_counts_as_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(_stream: object, _how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with owned_folder(tmp_path, "a-") as first, owned_folder(tmp_path, "a-"):
        assert first.exists()
    assert list(tmp_path.iterdir()) == []


def _holder() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _HOLDER]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": _root()}
    )


def _root() -> str:
    return str(Path(__file__).resolve().parents[2])
