"""What img2dataset leaves behind: `00000.tar` with `00000.parquet` and `00000_stats.json`, thousands of images each."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from cluster import storage
from cluster.storage import absolute
from pipelines.corpus.samples import BadSampleError, Fault, Origin, Raw
from pipelines.corpus.sources.base import Unit, cut, digest_of, listing

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
OBTAINED = "success"
_MAX_TEXT_BYTES = 1_000_000
_COLUMNS = ("key", "status", "error_message", "caption", "url")

Row = dict[str, Any]
Members = dict[str, bytes]


@dataclass(frozen=True)
class Img2DatasetSource:
    """Captioned images. The parquet says what there should be, the tar what there is; both must agree.

    Args:
        folder: the output folder of img2dataset.
        prompt: the user's words before every caption.
        max_bytes: the largest image that is read.
    """

    folder: str
    prompt: str
    max_bytes: int

    def __post_init__(self) -> None:
        """Require a folder with tars."""
        object.__setattr__(self, "folder", absolute(self.folder))
        if not self._stems():
            raise ValueError(f"images: {self.folder} holds no .tar file, give the output folder of img2dataset")

    def fingerprint(self) -> str:
        """Over the names and sizes of tars and the digests of the parquet files."""
        tables = {name: storage.sha256_of(storage.join(self.folder, name)) for name in self._names(".parquet")}
        return digest_of(listing(self.folder, ".tar", recursive=False), tables)

    def units(self, samples_per_shard: int) -> list[Unit]:
        """Slices of every tar, none of which crosses into the next tar."""
        units: list[Unit] = []
        first = 0
        for stem in self._stems():
            count = self._count(stem)
            for part in cut(count, samples_per_shard):
                payload = {"stem": stem, "first": part.start}
                start, stop = first + part.start, first + part.stop
                units.append(Unit(index=len(units), start=start, stop=stop, payload=payload))
            first += count
        return units

    def read(self, unit: Unit) -> Iterator[Raw | Fault]:
        """Pair the rows of a slice with the members of the tar."""
        stem, first = unit.payload["stem"], unit.payload["first"]
        rows = self._rows(stem)[first : first + unit.stop - unit.start]
        wanted = {row["key"] for row in rows if row["status"] == OBTAINED}
        members, end = self._members(stem, wanted)
        for position, row in enumerate(rows, unit.start):
            origin: Origin = {"file": f"{stem}.tar", "key": row["key"], "url": row.get("url")}
            try:
                yield self._raw(position, row, members.get(row["key"], {}), end, origin)
            except BadSampleError as bad:
                yield Fault(reason=bad.reason, origin=origin, detail=bad.detail)

    def _names(self, suffix: str) -> list[str]:
        return [PurePosixPath(uri).name for uri in storage.list_files(self.folder, suffix)]

    def _stems(self) -> list[str]:
        """Shards by either of their files: a tar without parquet is read, a parquet without tar is missing images."""
        if not (tars := self._names(".tar")):
            return []
        return sorted({PurePosixPath(name).stem for name in [*tars, *self._names(".parquet")]})

    def _uri(self, stem: str, suffix: str) -> str:
        return storage.join(self.folder, stem + suffix)

    def _count(self, stem: str) -> int:
        if not storage.exists(self._uri(stem, ".parquet")):
            return len(self._rows(stem))
        return int(self._table(stem).metadata.num_rows)

    def _table(self, stem: str) -> pq.ParquetFile:
        uri = self._uri(stem, ".parquet")
        try:
            table = pq.ParquetFile(io.BytesIO(storage.read_bytes(uri)))
        except (ValueError, OSError) as error:
            raise ValueError(f"{uri} is not a readable parquet file ({error}), fetch it again or remove it") from error
        if "key" not in table.schema_arrow.names:
            raise ValueError(f"{uri} has no column 'key', it is not img2dataset's")
        return table

    def _rows(self, stem: str) -> list[Row]:
        """What the parquet lists; without a parquet, what the tar holds."""
        if not storage.exists(self._uri(stem, ".parquet")):
            return [{"key": key, "status": OBTAINED} for key in self._keys(stem)]
        table = self._table(stem)
        rows = table.read(columns=[name for name in _COLUMNS if name in table.schema_arrow.names]).to_pylist()
        return [{"status": OBTAINED} | row | {"key": str(row["key"])} for row in rows]

    def _keys(self, stem: str) -> list[str]:
        keys: dict[str, None] = {}
        with storage.open_read(self._uri(stem, ".tar")) as stream:
            try:
                for member in tarfile.open(fileobj=stream, mode="r:"):  # noqa: SIM115 - the stream is what needs closing
                    keys.setdefault(_split(member.name)[0])
            except tarfile.ReadError:
                return list(keys)
        return list(keys)

    def _members(self, stem: str, wanted: set[str]) -> tuple[dict[str, Members], str]:
        """The wanted members by key and extension, and how the tar ended: empty where it ended well."""
        found: dict[str, Members] = {}
        try:
            with storage.open_read(self._uri(stem, ".tar")) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    key, extension = _split(member.name)
                    if key in wanted and member.isreg():
                        found.setdefault(key, {})[extension] = self._content(tar, member, extension)
        except FileNotFoundError:
            return found, f"{stem}.tar does not exist"
        except tarfile.ReadError as error:
            return found, f"{stem}.tar is damaged: {error}"
        return found, ""

    def _content(self, tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> bytes:
        """A member's bytes, at most one over its limit, so that the check that follows can tell."""
        stream = tar.extractfile(member)
        assert stream is not None
        limit = self.max_bytes if extension in IMAGE_EXTENSIONS else _MAX_TEXT_BYTES
        data = stream.read(limit + 1)
        if len(data) < min(member.size, limit + 1):
            raise tarfile.ReadError("unexpected end of data")
        return data

    def _raw(self, position: int, row: Row, members: Members, end: str, origin: Origin) -> Raw:
        if row["status"] != OBTAINED:
            raise BadSampleError("not_downloaded", f"{row['status']}: {row.get('error_message') or 'no message'}")
        images = [extension for extension in IMAGE_EXTENSIONS if extension in members]
        if not images:
            raise BadSampleError("missing_image", end or f"{origin['file']} has no image under this key")
        caption = _caption(row, members)
        if not caption:
            raise BadSampleError("no_caption", "neither json, txt nor parquet holds a caption")
        return Raw(
            position=position,
            identity=row["key"],
            image=members[images[0]],
            messages=[{"role": "user", "text": self.prompt}, {"role": "assistant", "text": caption}],
            origin=origin,
        )


def _split(name: str) -> tuple[str, str]:
    """Key and extension: the file name up to its first dot, and the rest in lower case."""
    key, _, extension = PurePosixPath(name).name.partition(".")
    return key, extension.lower()


def _caption(row: Row, members: Members) -> str:
    """The caption from the sample's JSON, its text file or the table, whichever has one first."""
    try:
        described = json.loads(members.get("json", b"{}"))
        text = members.get("txt", b"").decode()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadSampleError("bad_record", f"json or txt cannot be read: {error}") from error
    inner = described.get("caption") if isinstance(described, dict) else None
    for caption in (inner, text, row.get("caption")):
        if isinstance(caption, str) and caption.strip():
            return caption.strip()
    return ""
