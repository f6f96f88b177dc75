"""What every source of samples offers, and what several of them need."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Protocol

from cluster import storage
from pipelines.corpus.recipe import Limits
from pipelines.corpus.samples import BadSampleError, Fault, Raw

_NO_FILE = frozenset({errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG})
"""What a strange image path of one record leads to; anything else is trouble with the storage as a whole."""
_WILD = "*?["
MAX_IMAGES = Limits.max_images
"""Images of one sample where a source is not told otherwise."""

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""Something that does what `map` does, perhaps on many machines."""


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

    def units(self, samples_per_shard: int, mapped: Mapper = map) -> list[Unit]:
        """The source cut into parts of `samples_per_shard` records, in order, nothing left out.

        Only the last part may be smaller: where a file of the source ends must not show in the corpus. Files that
        need a look first are looked at through `mapped`.
        """

    def read(self, unit: Unit) -> Iterator[Raw | Fault]:
        """Every record of a part, in order: exactly `unit.stop - unit.start` of them, good or bad."""


def cut(total: int, samples_per_shard: int) -> Iterator[Unit]:
    """Units of equal size over `total` records."""
    for index, start in enumerate(range(0, total, samples_per_shard)):
        yield Unit(index=index, start=start, stop=min(start + samples_per_shard, total))


def chunked(rows: Iterable[Any], samples_per_shard: int) -> list[Unit]:
    """Units out of one row of JSON per record, packed: a driver holds all of them at once."""
    waiting, units = iter(rows), list[Unit]()
    while chunk := list(islice(waiting, samples_per_shard)):
        start = units[-1].stop if units else 0
        payload = zlib.compress(json.dumps(chunk, separators=(",", ":")).encode())
        units.append(Unit(index=len(units), start=start, stop=start + len(chunk), payload=payload))
    return units


def rows_of(unit: Unit) -> list[Any]:
    """The rows that `chunked` packed; tuples come back as lists."""
    return list(json.loads(zlib.decompress(unit.payload)))


def slices(counts: Sequence[int], unit: Unit) -> Iterator[tuple[int, int, int]]:
    """What a unit takes of files that hold `counts` records: the file's number, and its own first and last but one."""
    first = 0
    for number, count in enumerate(counts):
        start, stop = max(unit.start - first, 0), min(unit.stop - first, count)
        if start < stop:
            yield number, start, stop
        first += count


def digest_of(*parts: object) -> str:
    """SHA-256 over the canonical JSON of the parts."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def listing(folder: str, suffix: str = "", *, recursive: bool) -> list[list[object]]:
    """Names below a folder with their sizes, for fingerprints: the same for the same tree, wherever it lies."""
    sizes = storage.list_sizes(folder, suffix, recursive=recursive)
    root = storage.join(folder, "")
    return [[name.removeprefix(root), size] for name, size in sizes.items()]


def matching(uri: str, suffix: str) -> dict[str, int]:
    """The files that a folder, a file or a glob means, with their sizes in bytes, in the order of their names.

    A folder means the files right in it; a glob reaches into folders where it has a slash after its first wildcard.
    """
    wild = min((uri.index(sign) for sign in _WILD if sign in uri), default=-1)
    if wild < 0 or storage.exists(uri):
        return storage.list_sizes(uri, suffix)
    folder, _, rest = uri[:wild].rpartition("/")
    pattern = rest + uri[wild:]
    found = storage.list_sizes(folder, recursive="/" in pattern)
    root = storage.join(folder, "")
    return {name: size for name, size in found.items() if fnmatch.fnmatchcase(name.removeprefix(root), pattern)}


def check_path(name: str) -> str:
    """A path inside its folder, as a record or a tar names it.

    Raises:
        BadSampleError: `unsafe_path` for everything that could lead elsewhere.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or ":" in name or "\\" in name or "\0" in name:
        raise BadSampleError("unsafe_path", f"the name is {name!r}, expected a path inside the folder")
    return name


def read_image(uri: str, max_bytes: int) -> bytes:
    """An encoded image, never more than one byte over the limit.

    Raises:
        BadSampleError: `missing_image` or `too_large`.
    """
    try:
        with storage.open_read(uri) as stream:
            data = stream.read(max_bytes + 1)
    except UnicodeEncodeError as error:
        # JSON may spell half a surrogate pair, which no file's name holds.
        raise BadSampleError("missing_image", f"no file can be called {uri!r}") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError) or getattr(error.__cause__, "errno", None) in _NO_FILE:
            raise BadSampleError("missing_image", f"there is no file {uri}") from error
        raise
    if len(data) > max_bytes:
        raise BadSampleError("too_large", f"more than {max_bytes:,} bytes")
    return data
