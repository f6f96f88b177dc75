"""Short-lived, private folders, and the removal of those whose owner was killed."""

from __future__ import annotations

import fcntl
import glob
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.processes import undisturbed

_PREFIX = "qmop-ray-"
_LOCK = "owner.lock"
# Unix socket paths may have 107 characters, of which Ray's names below the folder take up to 66.
_LONGEST = 40


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A fresh folder for an embedded cluster that is removed at the end of the block; see ``owned_folder``."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent / _PREFIX)) + 8 > _LONGEST:
        parent = Path("/tmp")  # noqa: S108 - only because it is short; mkdtemp makes the folder private
    with owned_folder(parent, _PREFIX) as folder:
        yield folder


@contextmanager
def owned_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A fresh folder in ``parent`` that is removed at the end of the block.

    The owner holds a lock on a file in it for as long as it lives, which the operating system releases however the
    owner ends. Folders of the same prefix whose lock is free were left by a killed process and are removed on this
    occasion. Where several machines share the parent, the prefix holds the machine's name: not every file system
    carries locks between them.

    Args:
        parent: folder; made if there is none.
        prefix: of the folder's name.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(parent, prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    # Named only once it is locked: no other process can take the folder for an abandoned one in between.
    with (folder / "new.lock").open("w") as lock:
        with suppress(OSError):  # a file system without locks; there nothing counts as abandoned either
            fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "new.lock").rename(folder / _LOCK)
        try:
            yield folder
        finally:
            with undisturbed():
                shutil.rmtree(folder, ignore_errors=True)


def _remove_left_behind(parent: Path, prefix: str) -> None:
    for lock_file in parent.glob(f"{glob.escape(prefix)}*/{_LOCK}"):
        try:
            with lock_file.open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_file.parent, ignore_errors=True)
        except OSError:
            continue  # alive, another user's, or being removed by somebody else
