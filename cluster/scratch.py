"""A short-lived, private folder for an embedded cluster, and the removal of those whose owner was killed."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.processes import undisturbed

_PREFIX = "qmop-ray-"
_LOCK = "owner.lock"
# Unix socket paths may have 107 characters, of which Ray's names below the folder take up to 66.
_LONGEST = 40


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A fresh folder that is removed at the end of the block.

    The owner holds a lock on a file in it for as long as it lives, which the operating system releases however the
    owner ends. Folders whose lock is free were left by a killed process and are removed on this occasion.
    """
    parent = Path(tempfile.gettempdir())
    if len(str(parent / _PREFIX)) + 8 > _LONGEST:
        parent = Path("/tmp")  # noqa: S108 - only because it is short; mkdtemp makes the folder private
    _remove_left_behind(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    # Named only once it is locked: no other process can take the folder for an abandoned one in between.
    with (folder / "new.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "new.lock").rename(folder / _LOCK)
        try:
            yield folder
        finally:
            with undisturbed():
                shutil.rmtree(folder, ignore_errors=True)


def _remove_left_behind(parent: Path) -> None:
    for lock_file in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            with lock_file.open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_file.parent, ignore_errors=True)
        except OSError:
            continue  # alive, another user's, or being removed by somebody else
