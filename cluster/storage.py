"""Where URIs are opened: a local path, ``file://`` or ``s3://``; ``conditional`` writes what only one may write.

Everything else of the project hands URIs about as strings. Endpoint, region and credentials of S3 come from the
usual AWS variables (``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE`` and so on).

What appears under a name is always complete: local files are written beside their final name, flushed to disk and
renamed; an S3 object appears when its upload ends. Any other scheme (``pipe:`` would run a shell) is refused.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path
from typing import BinaryIO

import pyarrow.fs as pafs

from cluster import local, s3
from cluster.failures import StorageError
from cluster.uris import explained, is_s3, join, key_of

__all__ = [
    "StorageError",
    "append",
    "arrow_filesystem",
    "exists",
    "get_file",
    "is_s3",
    "join",
    "list_files",
    "list_sizes",
    "list_stamps",
    "open_read",
    "put_file",
    "read_bytes",
    "remove",
    "remove_abandoned",
    "remove_tree",
    "sha256_of",
    "write_atomic",
]

_PREFETCH_BYTES = 8 * 1024 * 1024
_PIECE_BYTES = 1024 * 1024


def exists(uri: str | Path) -> bool:
    """Whether a file, folder or prefix is there."""
    if not is_s3(uri):
        return local.path_of(uri).exists()
    with s3.explained(str(uri)):
        return bool(s3.filesystem().exists(key_of(uri)))


def read_bytes(uri: str | Path) -> bytes:
    """The whole file.

    Raises:
        FileNotFoundError: if there is none.
        StorageError: if it cannot be read.
    """
    with open_read(uri) as stream, explained(uri):
        return stream.read()


def open_read(uri: str | Path) -> BinaryIO:
    """A binary stream to read from; the caller closes it.

    Raises:
        FileNotFoundError: if there is no such file.
        StorageError: if it cannot be opened.
    """
    with explained(uri):
        if not is_s3(uri):
            return local.path_of(uri).open("rb")
        stream: BinaryIO = s3.filesystem().open(key_of(uri), "rb", block_size=_PREFETCH_BYTES)
        return stream


def sha256_of(uri: str | Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with open_read(uri) as stream, explained(uri):
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def write_atomic(uri: str | Path, data: bytes) -> None:
    """Put ``data`` under ``uri``, replacing what was there; a reader sees the old file or the new one, never a part.

    Raises:
        StorageError: if it cannot be written.
    """
    with explained(uri):
        if is_s3(uri):
            s3.filesystem().pipe_file(key_of(uri), data)
            return
        with local.finished_beside(local.path_of(uri), io.BytesIO(data)) as temporary:
            temporary.replace(local.path_of(uri))


def append(uri: str | Path, data: bytes) -> None:
    """Add ``data`` to the end of a local file, which is made if there is none; a reader may see a part of ``data``.

    Raises:
        StorageError: if it cannot be written.
        ValueError: if ``uri`` is not local.
    """
    if is_s3(uri):
        raise ValueError(f"{uri} is not a local file, and nothing can be appended elsewhere: write it anew.")
    with explained(uri):
        target = local.path_of(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("ab") as stream:
            stream.write(data)


def put_file(source: Path, uri: str | Path) -> None:
    """Copy the local file ``source`` to ``uri``, as atomically as ``write_atomic`` does and without reading it whole.

    Raises:
        FileNotFoundError: if ``source`` does not exist.
        StorageError: if ``uri`` cannot be written.
    """
    with source.open("rb") as stream, explained(uri):
        if is_s3(uri):
            s3.filesystem().put_file(str(source), key_of(uri))
            return
        with local.finished_beside(local.path_of(uri), stream) as temporary:
            temporary.replace(local.path_of(uri))


def get_file(uri: str | Path, target: Path) -> str:
    """Copy ``uri`` to the local file ``target``, in pieces.

    Returns:
        The SHA-256 of what was read, in hexadecimal.

    Raises:
        FileNotFoundError: if there is no such file.
        StorageError: if it cannot be read, or ``target`` cannot be written.
    """
    digest = hashlib.sha256()
    with open_read(uri) as stream, explained(uri), target.open("wb") as copy:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
            copy.write(piece)
    return digest.hexdigest()


def list_files(uri: str | Path, suffix: str = "", *, recursive: bool = False) -> list[str]:
    """The files under a folder or prefix whose names end in ``suffix``, as full URIs in sorted order.

    Raises:
        FileNotFoundError: if there is no such folder or prefix.
    """
    return list(list_sizes(uri, suffix, recursive=recursive))


def list_sizes(uri: str | Path, suffix: str = "", *, recursive: bool = False) -> dict[str, int]:
    """What ``list_files`` lists, each with its size in bytes; a file named directly lists itself.

    Raises:
        FileNotFoundError: if there is no such folder or prefix.
    """
    with explained(uri):
        found = s3.sizes(key_of(uri), recursive) if is_s3(uri) else local.sizes(local.path_of(uri), recursive)
    return {name: found[name] for name in sorted(found) if name.endswith(suffix)}


def list_stamps(uri: str | Path, *, recursive: bool = False) -> dict[str, str]:
    """What ``list_sizes`` lists, each with a stamp that changes when the file does: size and time, or S3's own tag.

    Raises:
        FileNotFoundError: if there is no such folder or prefix.
    """
    with explained(uri):
        if is_s3(uri):
            return s3.stamps(key_of(uri), recursive)
        facts = {name: Path(name).stat() for name in local.sizes(local.path_of(uri), recursive)}
    return {name: f"{fact.st_size}-{fact.st_mtime_ns}-{fact.st_ino}" for name, fact in facts.items()}


def remove(uri: str | Path) -> None:
    """Delete one file; nothing happens where there is none."""
    with explained(uri):
        if is_s3(uri):
            fs = s3.filesystem()
            if fs.isfile(key_of(uri)):
                fs.rm_file(key_of(uri))
            return
        local.path_of(uri).unlink(missing_ok=True)


def remove_tree(folder: str | Path) -> None:
    """Delete a local folder and all in it; nothing happens where there is none.

    Raises:
        ValueError: if ``folder`` is not local.
    """
    if is_s3(folder):
        raise ValueError(f"{folder} is not a local folder: delete prefixes in S3 with the bucket's own tools.")
    shutil.rmtree(local.path_of(folder), ignore_errors=True)


def remove_abandoned(folder: str | Path) -> int:
    """Delete what killed writers left of files below a local folder, which no listing shows; links are not followed.

    The caller must be the sole owner of what is below the folder, by a lease for instance. Writers on this machine that
    are alive are spared all the same, by the locks on what they write; those of other machines only where the file
    system carries locks between machines. In S3 nothing is half-written, and nothing happens.

    Returns:
        How many files were deleted; 0 where there is no such folder. What may not be deleted stays.
    """
    return 0 if is_s3(folder) else local.remove_abandoned(local.path_of(folder))


def absolute(uri: str | Path) -> str:
    """A name that means the same in every process: local paths made absolute, others as they are."""
    return str(uri).rstrip("/") if is_s3(uri) else str(local.path_of(uri).absolute())


def arrow_filesystem(uri: str | Path) -> tuple[pafs.FileSystem | None, str]:
    """``uri`` for Ray's ``storage_filesystem`` and ``storage_path``: no file system and an absolute path when local.

    Raises:
        StorageError: if the S3 endpoint does not answer.
    """
    if is_s3(uri):
        return s3.arrow(), key_of(uri)
    return None, absolute(uri)
