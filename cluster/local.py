"""Files on a local disk that are complete whenever they have a name. Opened through ``cluster.storage``."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

_TEMPORARY = ".qmop-tmp-"
_HEX = 32
"""Digits in a temporary's name; the lock files of `replace_if_match`, which stay, have other names."""


def path_of(uri: str | Path) -> Path:
    """The path that a plain path or a ``file://`` URI means.

    Raises:
        ValueError: if a ``file://`` URI names another machine or no absolute path.
    """
    text = str(uri)
    if not text.lower().startswith("file:"):
        return Path(text).expanduser()
    parts = urlsplit(text)
    if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
        raise ValueError(f"{text!r} is not a local file: write file:///absolute/path.")
    return Path(unquote(parts.path))


@contextmanager
def finished_beside(target: Path, source: BinaryIO) -> Iterator[Path]:
    """A temporary neighbour of ``target`` with all of ``source`` on disk; gone at the end unless renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, stream = _fresh_beside(target)
    try:
        with stream:  # open, and so locked, until it has its name
            shutil.copyfileobj(source, stream, 1024 * 1024)
            stream.flush()
            os.fsync(stream.fileno())
            yield temporary
        _flush_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _fresh_beside(target: Path) -> tuple[Path, BinaryIO]:
    """A temporary neighbour, locked for as long as its writer has it open and lives."""
    while True:
        temporary = target.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        stream = temporary.open("xb")
        with suppress(OSError):  # a file system without locks; there nothing counts as abandoned either
            fcntl.flock(stream, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, stream
        stream.close()  # taken for abandoned between its making and its lock


def remove_abandoned(root: Path) -> int:
    """See ``cluster.storage``."""
    removed = 0
    for folder, _, names in os.walk(root):
        for name in names:
            digits = name.removeprefix(_TEMPORARY)
            if digits != name and len(digits) == _HEX and digits.isalnum():
                removed += _removed_if_abandoned(Path(folder, name))
    return removed


def _removed_if_abandoned(temporary: Path) -> bool:
    try:
        with temporary.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()
    except OSError:
        return False  # being written, finished in between, or another user's
    return True


def version_of(data: bytes) -> str:
    """What tells a file's content from any other."""
    return hashlib.sha256(data).hexdigest()


def replace_if_match(target: Path, data: bytes, version: str) -> str | None:
    """See ``cluster.storage``. Callers exclude each other by a lock that ends with its holder, however that ends."""
    if not target.exists():
        return None
    with (target.parent / f"{_TEMPORARY}{target.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists() or version_of(target.read_bytes()) != version:
            return None
        with finished_beside(target, io.BytesIO(data)) as temporary:
            temporary.replace(target)
    return version_of(data)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sizes(root: Path, recursive: bool) -> dict[str, int]:
    """The files in ``root`` with their sizes in bytes; a file lists itself, temporary neighbours are left out.

    Links are followed, to files and to folders, but for those that lead back to a folder above them.

    Raises:
        FileNotFoundError: if ``root`` does not exist.
    """
    if root.is_file():
        return {str(root): root.stat().st_size}
    if not root.is_dir():
        raise FileNotFoundError
    files = _files(root, recursive, frozenset())
    return {str(entry): entry.stat().st_size for entry in files if not entry.name.startswith(_TEMPORARY)}


def _files(folder: Path, recursive: bool, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """The files in a folder; what may not be read is passed over, as a shell's glob does."""
    here = folder.stat()
    if (here.st_dev, here.st_ino) in above:
        return
    try:
        entries = list(folder.iterdir())
    except PermissionError:
        return
    for entry in entries:
        if entry.is_file():
            yield entry
        elif recursive and entry.is_dir():
            yield from _files(entry, recursive, above | {(here.st_dev, here.st_ino)})
