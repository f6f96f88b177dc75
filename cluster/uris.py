"""What a URI says of where it leads: a local path, ``file://`` or ``s3://``, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from cluster import s3
from cluster.failures import RefusedError, StorageError

_REFUSALS = (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")


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


def key_of(uri: str | Path) -> str:
    """Bucket and key of an S3 URI."""
    return str(uri).removeprefix("s3://").rstrip("/")


@contextmanager
def explained(uri: str | Path) -> Iterator[None]:
    """Turn trouble with a place into an error that names it: `FileNotFoundError` or `StorageError`."""
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
        kind = RefusedError if isinstance(error, _REFUSALS) else StorageError
        raise kind(f"{uri} cannot be used: {error.strerror or error}.") from error
