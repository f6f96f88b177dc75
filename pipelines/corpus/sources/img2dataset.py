"""What img2dataset leaves behind: `00000.tar` with `00000.parquet` and `00000_stats.json`, thousands of images each."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from cluster import storage
from cluster.storage import absolute
from pipelines.corpus.samples import BadSampleError, Fault, Origin, Raw
from pipelines.corpus.sources.base import MAX_IMAGES, Mapper, Unit, chunked, digest_of, listing, rows_of
from pipelines.corpus.sources.conversations import check_places, first_text, from_files
from pipelines.corpus.sources.parquet import values_at
from pipelines.corpus.sources.tars import Content, Group, Survey, lost, raw_or_fault, survey

OBTAINED = "success"
_COLUMNS = ("key", "status", "error_message", "caption", "url")

Row = dict[str, Any]


@dataclass(frozen=True)
class Img2DatasetSource:
    """Captioned images. The parquet says what there should be, the tar what there is; both must agree.

    img2dataset writes one image per caption; several under a key, added by other tools, are read as everywhere.
    Without its parquet a tar speaks for itself, and so it does beside a damaged one, which is put aside as one record;
    without its tar a parquet misses every image.

    Args:
        folder: the output folder of img2dataset.
        prompt: the user's words before every caption.
        max_bytes: the largest image that is read.
        max_images: most images of one caption.
    """

    folder: str
    prompt: str
    max_bytes: int
    max_images: int = MAX_IMAGES

    def __post_init__(self) -> None:
        """Require a folder with tars."""
        object.__setattr__(self, "folder", absolute(self.folder))
        if not self._stems():
            raise ValueError(f"images: {self.folder} holds no .tar file, give the output folder of img2dataset")

    def fingerprint(self) -> str:
        """Over the names and sizes of tars and the digests of the parquet files."""
        tables = {name: storage.sha256_of(storage.join(self.folder, name)) for name in self._names(".parquet")}
        return digest_of(listing(self.folder, ".tar", recursive=False), tables)

    def units(self, samples_per_shard: int, mapped: Mapper = map) -> list[Unit]:
        """Tables and tars are gone through once; units carry their rows with the places of the members."""
        found = mapped(self._surveyed, self._stems())
        return chunked((row for rows in found for row in rows), samples_per_shard)

    def read(self, unit: Unit) -> Iterator[Raw | Fault]:
        """Cut the members of a slice out of its tars."""
        position = unit.start
        for stem, rows in groupby(rows_of(unit), key=itemgetter("file")):
            with ExitStack() as opened:
                uri = self._uri(stem, ".tar")
                stream = opened.enter_context(storage.open_read(uri)) if storage.exists(uri) else io.BytesIO()
                for row in rows:
                    yield self._sample(stream, position, row)
                    position += 1

    def _names(self, suffix: str) -> list[str]:
        return [PurePosixPath(uri).name for uri in storage.list_files(self.folder, suffix)]

    def _stems(self) -> list[str]:
        """Shards by either of their files: a tar without parquet is read, a parquet without tar is missing images."""
        if not (tars := self._names(".tar")):
            return []
        return sorted({PurePosixPath(name).stem for name in [*tars, *self._names(".parquet")]})

    def _uri(self, stem: str, suffix: str) -> str:
        return storage.join(self.folder, stem + suffix)

    def _surveyed(self, stem: str) -> list[Row]:
        """Every row of the table with its members in the tar, then what the tar holds beyond it."""
        tar = self._uri(stem, ".tar")
        found = survey(tar) if storage.exists(tar) else Survey([])
        lacking = f"{stem}.tar has no image under this key"
        if not storage.exists(self._uri(stem, ".parquet")):
            rows = _unlisted(found)
        else:
            try:
                rows = list(_matched(self._table(stem), found, lacking))
            except BadSampleError as bad:
                rows = [_bad({"key": "", "status": OBTAINED}, bad.reason, bad.detail), *_unlisted(found)]
        return [row | {"file": stem} for row in rows]

    def _table(self, stem: str) -> list[Row]:
        """The rows of a table; one that holds a text which cannot be read says so under `broken`.

        Raises:
            BadSampleError: `damaged_file` if it cannot be read as a whole.
            ValueError: if it is a table of something else.
        """
        uri = self._uri(stem, ".parquet")
        data = io.BytesIO(storage.read_bytes(uri))
        try:
            file = pq.ParquetFile(data)
            table = file.read(columns=[name for name in _COLUMNS if name in file.schema_arrow.names])
        except (ValueError, OSError) as error:  # ours is the memory that is read, so no storage is to blame
            raise BadSampleError("damaged_file", f"{uri} is not a readable parquet file: {error}") from error
        if "key" not in table.column_names:
            raise ValueError(f"{uri} has no column 'key', it is not img2dataset's")
        return [_listed(table.column_names, table.columns, place) for place in range(table.num_rows)]

    def _sample(self, stream: BinaryIO, position: int, row: Row) -> Raw | Fault:
        origin: Origin = {"file": f"{row['file']}.tar", "key": row["key"], "url": row.get("url")}
        group = Group(row["key"], row["members"], row["reason"], row["detail"])
        limits = self.max_bytes, self.max_images
        return raw_or_fault(stream, group, limits, origin, partial(self._raw, position, row, origin))

    def _raw(self, position: int, row: Row, origin: Origin, found: Content) -> Raw:
        if not found.images:
            raise BadSampleError("missing_image", f"{origin['file']} has no image under this key")
        messages, record = from_files(found.texts, row.get("caption"), self.prompt)
        check_places(first_text(record), len(found.images), listed=found.listed)
        return Raw(position=position, identity=row["key"], images=found.images, messages=messages, origin=origin)


def _listed(names: Sequence[str], columns: Sequence[Any], place: int) -> Row:
    """A row of the table by its columns' names."""
    values = values_at(columns, place)
    if isinstance(values, BadSampleError):
        key = values_at([columns[names.index("key")]], place)
        known = "" if isinstance(key, BadSampleError) else str(key[0])
        return {"key": known, "status": OBTAINED, "broken": values.detail}
    row = dict(zip(names, values, strict=True))
    return {"status": OBTAINED} | row | {"key": str(row["key"])}


def _unlisted(found: Survey) -> list[Row]:
    """What a tar holds that has to speak for itself."""
    groups = [*found.groups, *lost(found, None)]
    return [_placed({"key": group.key, "status": OBTAINED}, group) for group in groups]


def _placed(row: Row, group: Group) -> Row:
    return row | {"members": group.members, "reason": group.reason, "detail": group.detail}


def _bad(row: Row, reason: str, detail: str) -> Row:
    return row | {"members": {}, "reason": reason, "detail": detail}


def _matched(table: Iterable[Row], found: Survey, lacking: str) -> Iterator[Row]:
    """Rows with their samples in the tar; what no row has taken comes last."""
    waiting = {group.key: group for group in reversed(found.groups)}
    seen = set()
    taken = set()
    for row in table:
        group = waiting.get(row["key"])
        if "broken" in row:
            yield _bad(row, "bad_record", row["broken"])
            taken.add(id(group))
        elif row["key"] in seen:
            yield _bad(row, "duplicate_key", "the table lists this key before")
        elif row["status"] != OBTAINED:
            yield _bad(row, "not_downloaded", f"{row['status']}: {row.get('error_message') or 'no message'}")
        elif group is None:
            yield _bad(row, "damaged_file" if found.end else "missing_image", found.end or lacking)
        else:
            taken.add(id(group))
            yield _placed(row, group)
        seen.add(row["key"])
    for group in found.groups:
        if id(group) not in taken:
            group.forbid("unlisted", "the table beside the tar does not list this key")
            yield _placed({"key": group.key, "status": OBTAINED}, group)
