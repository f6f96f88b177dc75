"""What every source of samples offers, and what several of them need."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from cluster import storage
from pipelines.corpus.samples import BadSampleError, Fault, Raw

_NO_FILE = frozenset({errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG})
"""What a strange image path of one record leads to; anything else is trouble with the storage as a whole."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The part of a source that becomes one shard: records `start` to `stop`, counted over the whole source.

    `payload` is whatever the source needs to read the part elsewhere; it travels to another process.
    """

    index: int
    start: int
    stop: int
    payload: Any = None


class Source(Protocol):
    """A picklable description of raw data."""

    def fingerprint(self) -> str:
        """A digest that changes when the raw data do."""

    def units(self, samples_per_shard: int) -> list[Unit]:
        """The source cut into parts of at most `samples_per_shard` records, in order, nothing left out."""

    def read(self, unit: Unit) -> Iterator[Raw | Fault]:
        """Every record of a part, in order: exactly `unit.stop - unit.start` of them, good or bad."""


def cut(total: int, samples_per_shard: int) -> Iterator[Unit]:
    """Units of equal size over `total` records."""
    for index, start in enumerate(range(0, total, samples_per_shard)):
        yield Unit(index=index, start=start, stop=min(start + samples_per_shard, total))


def digest_of(*parts: object) -> str:
    """SHA-256 over the canonical JSON of the parts."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def listing(folder: str, suffix: str = "", *, recursive: bool) -> list[list[object]]:
    """Names below a folder with their sizes, for fingerprints: the same for the same tree, wherever it lies."""
    sizes = storage.list_sizes(folder, suffix, recursive=recursive)
    root = storage.join(folder, "")
    return [[name.removeprefix(root), size] for name, size in sizes.items()]


def read_image(uri: str, max_bytes: int) -> bytes:
    """An encoded image, never more than one byte over the limit.

    Raises:
        BadSampleError: `missing_image` or `too_large`.
    """
    try:
        with storage.open_read(uri) as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or getattr(error.__cause__, "errno", None) in _NO_FILE:
            raise BadSampleError("missing_image", f"there is no file {uri}") from error
        raise
    if len(data) > max_bytes:
        raise BadSampleError("too_large", f"more than {max_bytes:,} bytes")
    return data
