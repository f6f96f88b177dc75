"""Writes of which one wins, whoever else writes at the same time: create if absent, replace if unchanged."""

from __future__ import annotations

import io
import os
from pathlib import Path

from cluster import local, s3
from cluster.uris import explained, is_s3, key_of


def create_if_absent(uri: str | Path, data: bytes) -> bool:
    """Create ``uri`` with ``data`` unless it exists: of any number of callers at once, exactly one gets True.

    A caller whose connection broke after the upload may get False for its own file; put something of your own into
    ``data`` if you must tell.

    Raises:
        StorageError: if it cannot be written, or the local file system knows no hard links.
    """
    with explained(uri):
        if is_s3(uri):
            return s3.create_if_absent(key_of(uri), data)
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
    with explained(uri):
        if is_s3(uri):
            return s3.read_versioned(key_of(uri))
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
    with explained(uri):
        if is_s3(uri):
            return s3.replace_if_match(key_of(uri), data, version)
        return local.replace_if_match(local.path_of(uri), data, version)
