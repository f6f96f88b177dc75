"""One WebDataset shard as bytes: written so that equal samples give equal bytes, read without trusting any name."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipelines.corpus.samples import Sample

IMAGES = ("jpg", "png", "webp")
RECORD = "json"
_PLAIN = frozenset((*IMAGES, RECORD))
_NUMBERED = re.compile(rf"(0|[1-9][0-9]{{0,3}})\.({'|'.join(IMAGES)})")
_END = bytes(2 * tarfile.BLOCKSIZE)


class ShardError(ValueError):
    """A shard is not what its manifest or the format promises; the message names shard and cause."""


@dataclass(frozen=True)
class Entry:
    """Where the members of one key lie inside a shard: `(offset, size)` in bytes by extension, numbers included."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)

    def part(self, data: bytes, extension: str) -> bytes:
        """The bytes of one member."""
        offset, size = self.members[extension]
        return data[offset : offset + size]

    @property
    def images(self) -> list[str]:
        """The extensions of the images in order; none for a text-only sample."""
        return sorted((name for name in self.members if name != RECORD), key=_number)


def encode_shard(samples: Iterable[Sample]) -> bytes:
    """A USTAR archive with fixed times and owners; members of a sample stand together."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for name, content in sample.members():
                tar.addfile(plain_header(name, len(content)), io.BytesIO(content))
    return buffer.getvalue()


def plain_header(name: str, size: int) -> tarfile.TarInfo:
    """A plain file whose header says nothing of when and where it was written."""
    header = tarfile.TarInfo(name)
    header.size = size
    header.mode = 0o644
    header.uname = header.gname = "qmop"
    return header


def index_shard(data: bytes, name: str) -> list[Entry]:
    """Find every sample of a shard without copying it.

    Args:
        data: the whole shard.
        name: what errors call it.

    Raises:
        ShardError: if the archive is damaged, a member is no plain file or has an unsafe name or an extension that
            our shards never hold, a key comes twice, or a sample lacks its record.
    """
    entries: dict[str, Entry] = {}
    last = ""
    for member in _members(data, name):
        key, extension = _safe(member, name)
        if key in entries and key != last:
            raise ShardError(f"shard {name}: the members of {key} do not stand together, write the shard again")
        entry = entries.setdefault(key, Entry(key))
        if extension in entry.members:
            raise ShardError(f"shard {name}: {member.name} is there twice, write the shard again")
        entry.members[extension] = (member.offset_data, member.size)
        last = key
    for entry in entries.values():
        if not _complete(entry):
            raise ShardError(
                f"shard {name}: {entry.key} holds {sorted(entry.members)}, expected json and one image, or several "
                "images numbered from 0"
            )
    return list(entries.values())


def _number(extension: str) -> int:
    """The number in front of an image's extension; -1 for the only image of a sample."""
    number, dot, _ = extension.partition(".")
    return int(number) if dot else -1


def _complete(entry: Entry) -> bool:
    """Whether there is a record, and either one image or none, or images 0, 1, ... without a gap."""
    numbers = [_number(extension) for extension in entry.images]
    return RECORD in entry.members and numbers in ([], [-1], list(range(max(2, len(numbers)))))


def _members(data: bytes, name: str) -> Iterator[tarfile.TarInfo]:
    if not data.endswith(_END):
        raise ShardError(f"shard {name}: the archive is damaged (it has no end), fetch or write it again")
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            yield from tar
    except tarfile.TarError as error:
        raise ShardError(f"shard {name}: the archive is damaged ({error}), fetch or write it again") from error


def _safe(member: tarfile.TarInfo, name: str) -> tuple[str, str]:
    if not member.isreg() or member.issparse():
        raise ShardError(f"shard {name}: {member.name!r} is a link, folder or device, only plain files are read")
    if "/" in member.name or "\\" in member.name:
        raise ShardError(f"shard {name}: {member.name!r} is no plain file name, refuse this shard")
    key, _, extension = member.name.partition(".")
    if not key or not (extension in _PLAIN or _NUMBERED.fullmatch(extension)):
        raise ShardError(
            f"shard {name}: {member.name!r} is not one of <key>.{{{','.join((*IMAGES, RECORD))}}} and <key>.<number>."
            f"{{{','.join(IMAGES)}}}"
        )
    return key, extension


def digests(data: bytes) -> tuple[str, str]:
    """SHA-256 and MD5; the second is what the wids format asks for and protects nothing."""
    return hashlib.sha256(data).hexdigest(), hashlib.md5(data, usedforsecurity=False).hexdigest()
