"""The one place that opens a URI: a local path, ``file://`` or ``s3://``.

Everything else of the project hands URIs about as strings. Endpoint, region and credentials of S3 come from the
usual AWS variables (``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE`` and so on).

What appears under a name is always complete: local files are written beside their final name, flushed to disk and
renamed; an S3 object appears when its upload ends. Any other scheme (``pipe:`` would run a shell) is refused.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from cluster import local, s3
from cluster.s3 import StorageError

__all__ = [
    "StorageError",
    "arrow_filesystem",
    "create_if_absent",
    "exists",
    "get_file",
    "is_s3",
    "join",
    "list_files",
    "list_sizes",
    "open_read",
    "put_file",
    "read_bytes",
    "read_versioned",
    "remove",
    "remove_tree",
    "replace_if_match",
    "sha256_of",
    "write_atomic",
]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_PREFETCH_BYTES = 8 * 1024 * 1024
_PIECE_BYTES = 1024 * 1024


def is_s3(uri: str | Path) -> bool:
    """Whether ``uri`` names a place in S3; False for a local path.

    Raises:
        ValueError: if the scheme is one that we do not open.
    """
    text = str(uri)
    scheme = _SCHEME.match(text)
    if scheme is None or scheme[1].lower() == "file":
        return False
    if scheme[1] != "s3":
        raise ValueError(
            f"{text!r} has the scheme {scheme[1]!r}: give a local path, file:// or s3:// "
            "(a local name with a colon needs a leading ./)."
        )
    if not text.startswith("s3://") or not urlsplit(text).netloc:
        raise ValueError(f"{text!r} names no bucket: write s3://bucket/key.")
    return True


def join(uri: str | Path, *parts: str) -> str:
    """``uri`` with ``parts`` appended, one slash between each."""
    return "/".join([str(uri).rstrip("/"), *(part.strip("/") for part in parts)])


def exists(uri: str | Path) -> bool:
    """Whether a file, folder or prefix is there."""
    if not is_s3(uri):
        return local.path_of(uri).exists()
    with s3.explained(str(uri)):
        return bool(s3.filesystem().exists(_key(uri)))


def read_bytes(uri: str | Path) -> bytes:
    """The whole file.

    Raises:
        FileNotFoundError: if there is none.
        StorageError: if it cannot be read.
    """
    with open_read(uri) as stream, _explained(uri):
        return stream.read()


def open_read(uri: str | Path) -> BinaryIO:
    """A binary stream to read from; the caller closes it.

    Raises:
        FileNotFoundError: if there is no such file.
        StorageError: if it cannot be opened.
    """
    with _explained(uri):
        if not is_s3(uri):
            return local.path_of(uri).open("rb")
        stream: BinaryIO = s3.filesystem().open(_key(uri), "rb", block_size=_PREFETCH_BYTES)
        return stream


def sha256_of(uri: str | Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with open_read(uri) as stream, _explained(uri):
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def write_atomic(uri: str | Path, data: bytes) -> None:
    """Put ``data`` under ``uri``, replacing what was there; a reader sees the old file or the new one, never a part.

    Raises:
        StorageError: if it cannot be written.
    """
    with _explained(uri):
        if is_s3(uri):
            s3.filesystem().pipe_file(_key(uri), data)
            return
        with local.finished_beside(local.path_of(uri), io.BytesIO(data)) as temporary:
            temporary.replace(local.path_of(uri))


def put_file(source: Path, uri: str | Path) -> None:
    """Copy the local file ``source`` to ``uri``, as atomically as ``write_atomic`` does and without reading it whole.

    Raises:
        FileNotFoundError: if ``source`` does not exist.
        StorageError: if ``uri`` cannot be written.
    """
    with source.open("rb") as stream, _explained(uri):
        if is_s3(uri):
            s3.filesystem().put_file(str(source), _key(uri))
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
    with open_read(uri) as stream, _explained(uri), target.open("wb") as copy:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
            copy.write(piece)
    return digest.hexdigest()


def create_if_absent(uri: str | Path, data: bytes) -> bool:
    """Create ``uri`` with ``data`` unless it exists: of any number of callers at once, exactly one gets True.

    A caller whose connection broke after the upload may get False for its own file; put something of your own into
    ``data`` if you must tell.

    Raises:
        StorageError: if it cannot be written, or the local file system knows no hard links.
    """
    with _explained(uri):
        if is_s3(uri):
            return s3.create_if_absent(_key(uri), data)
        with local.finished_beside(local.path_of(uri), io.BytesIO(data)) as temporary:
            try:
                os.link(temporary, local.path_of(uri))
            except FileExistsError:
                return False
            return True


def read_versioned(uri: str | Path) -> tuple[bytes, str]:
    """The whole file and its version, for ``replace_if_match``.

    Raises:
        FileNotFoundError: if there is none.
        StorageError: if it cannot be read.
    """
    with _explained(uri):
        if is_s3(uri):
            return s3.read_versioned(_key(uri))
        data = local.path_of(uri).read_bytes()
        return data, local.version_of(data)


def replace_if_match(uri: str | Path, data: bytes, version: str) -> str | None:
    """Replace ``uri`` if it still has the version that was read: of any number of callers with it, one gets through.

    A local file's version is its content, so put a number that grows into ``data`` where it may otherwise come back.
    A caller whose connection broke after the upload may get None for its own file: read it again where that matters.

    Args:
        uri: a file.
        data: its new content.
        version: from ``read_versioned``, or from the last call of this.

    Returns:
        The new version; None if the file has another version by now, or is gone, and is left as it is.

    Raises:
        StorageError: if it cannot be written.
    """
    with _explained(uri):
        if is_s3(uri):
            return s3.replace_if_match(_key(uri), data, version)
        return local.replace_if_match(local.path_of(uri), data, version)


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
    with _explained(uri):
        found = s3.sizes(_key(uri), recursive) if is_s3(uri) else local.sizes(local.path_of(uri), recursive)
    return {name: found[name] for name in sorted(found) if name.endswith(suffix)}


def remove(uri: str | Path) -> None:
    """Delete one file; nothing happens where there is none."""
    with _explained(uri):
        if is_s3(uri):
            fs = s3.filesystem()
            if fs.isfile(_key(uri)):
                fs.rm_file(_key(uri))
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


def absolute(uri: str | Path) -> str:
    """A name that means the same in every process: local paths made absolute, others as they are."""
    return str(uri).rstrip("/") if is_s3(uri) else str(local.path_of(uri).absolute())


def arrow_filesystem(uri: str | Path) -> tuple[pafs.FileSystem | None, str]:
    """``uri`` for Ray's ``storage_filesystem`` and ``storage_path``: no file system and an absolute path when local.

    Raises:
        StorageError: if the S3 endpoint does not answer.
    """
    if is_s3(uri):
        return s3.arrow(), _key(uri)
    return None, absolute(uri)


def _key(uri: str | Path) -> str:
    return str(uri).removeprefix("s3://").rstrip("/")


@contextmanager
def _explained(uri: str | Path) -> Iterator[None]:
    if is_s3(uri):
        with s3.explained(str(uri)):
            yield
        return
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{uri} does not exist.") from error
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{uri} cannot be used: {error.strerror or error}.") from error
