"""Parquet as Hugging Face writes it: image structs `{"bytes", "path"}` or lists of them, beside texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.storage import StorageError, absolute
from pipelines.corpus.samples import BadSampleError, Fault, Origin, Raw, check_count
from pipelines.corpus.sources.base import MAX_IMAGES, Mapper, Unit, cut, digest_of, matching, slices
from pipelines.corpus.sources.conversations import TEXT_FIELDS, check_places, messages_of

_ROWS = 32
"""Rows that are unpacked at once: pictures are large."""


@dataclass(frozen=True)
class ParquetSource:
    """Rows of parquet files in the order of the files' names; cut by rows, read by row groups.

    A row without image is a text-only sample if it holds a conversation. A row whose image has a path but no bytes
    misses it: paths of other machines are not followed. Ids need not be unique.

    Args:
        files: folder, file or glob.
        image: column of the images: structs, plain bytes, or lists of either, with as many `<image>` in the turns or
            none.
        text: column of captions or conversations; None for the first of those that people usually have.
        identity: column of the rows' names, which need not be there.
        prompt: the user's words before a caption.
        max_bytes: the largest image that is taken.
        max_images: most images of one row.
    """

    files: str
    image: str
    text: str | None
    identity: str
    prompt: str
    max_bytes: int
    max_images: int = MAX_IMAGES

    def __post_init__(self) -> None:
        """Require at least one file."""
        object.__setattr__(self, "files", absolute(self.files))
        if not matching(self.files, ".parquet"):
            raise ValueError(f"images: {self.files} holds no .parquet file, give a folder, a file or a glob of them")

    def fingerprint(self) -> str:
        """Over the names and sizes of the files."""
        return digest_of([[PurePosixPath(uri).name, size] for uri, size in matching(self.files, ".parquet").items()])

    def units(self, samples_per_shard: int, mapped: Mapper = map) -> list[Unit]:
        """Stretches of rows, counted by the files' footers."""
        files = list(matching(self.files, ".parquet"))
        counts = list(mapped(self._count, files))
        units = []
        for unit in cut(sum(counts), samples_per_shard):
            parts = [(files[number], start, stop) for number, start, stop in slices(counts, unit)]
            units.append(Unit(index=unit.index, start=unit.start, stop=unit.stop, payload=parts))
        return units

    def read(self, unit: Unit) -> Iterator[Raw | Fault]:
        """Read the row groups that a stretch touches."""
        position = unit.start
        for uri, first, stop in unit.payload:
            for number, row in _rows(uri, self._columns, first, stop):
                origin: Origin = {"file": PurePosixPath(uri).name, "row": number}
                yield self._checked(position, row, origin)
                position += 1

    def _count(self, uri: str) -> int:
        try:
            with storage.open_read(uri) as stream:
                file = pq.ParquetFile(stream)
                self._columns(file.schema_arrow.names, uri)
                return int(file.metadata.num_rows)
        except pa.ArrowException as error:
            raise ValueError(f"{uri} is not a readable parquet file ({error}), fetch it again or remove it") from error

    def _columns(self, names: list[str], uri: str) -> list[str]:
        """Image, text and, if there is one, the name's column."""
        texts = [self.text] if self.text else TEXT_FIELDS
        text = next((name for name in texts if name in names), None)
        if self.image not in names or text is None:
            field, wanted = ("text_field", " or ".join(texts)) if self.image in names else ("image_field", self.image)
            raise ValueError(f"{field}: {uri} has no column {wanted}, only {', '.join(names)}")
        return [self.image, text, *([self.identity] if self.identity in names else [])]

    def _checked(self, position: int, row: list[Any] | BadSampleError, origin: Origin) -> Raw | Fault:
        if isinstance(row, BadSampleError):
            return Fault(reason=row.reason, origin=origin, detail=row.detail)
        own = row[2] if len(row) > 2 else None  # noqa: PLR2004 - the name is the third column
        try:
            return Raw(
                position=position,
                identity=str(own) if isinstance(own, str | int) else "",
                images=self._images(row[0], row[1]),
                messages=messages_of(row[1], self.prompt),
                origin=origin,
            )
        except BadSampleError as bad:
            record = json.dumps([own, row[1]], default=str).encode()
            return Fault(reason=bad.reason, origin=origin, detail=bad.detail, evidence={"record": record})

    def _images(self, value: object, texts: object) -> tuple[bytes, ...]:
        listed = isinstance(value, list)
        images = value if isinstance(value, list) else [value]
        images = [] if all(image is None for image in images) else images
        if not images and not isinstance(texts, list):
            raise BadSampleError("missing_image", "the row holds no image")
        check_places(texts, len(images), listed=listed)
        check_count(len(images), self.max_images)
        return tuple(self._image(image) for image in images)

    def _image(self, value: object) -> bytes:
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None or isinstance(data, str):
            raise BadSampleError("missing_image", f"the row names an image but holds none of its bytes: {value}")
        if not isinstance(data, bytes):
            raise BadSampleError("bad_record", "the image is neither a struct with bytes nor bytes")
        if len(data) > self.max_bytes:
            raise BadSampleError("too_large", f"{len(data):,} bytes, the limit is {self.max_bytes:,}")
        return data


def values_at(columns: Sequence[Any], place: int) -> list[Any] | BadSampleError:
    """One row of Arrow columns in Python's types, or why it has none: Arrow reads texts without looking into them."""
    try:
        return [column[place].as_py() for column in columns]
    except (ValueError, ArithmeticError, LookupError, pa.ArrowException) as error:
        return BadSampleError("bad_record", f"a value of the row cannot be read: {error}")


def _rows(uri: str, columns: Any, first: int, stop: int) -> Iterator[tuple[int, list[Any] | BadSampleError]]:
    """Rows `first` to `stop` of a file; what a damaged row group lost, or a row hides, comes as an error."""
    with storage.open_read(uri) as stream:
        file = pq.ParquetFile(stream)
        names = columns(file.schema_arrow.names, uri)
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            low, high = max(first, start), min(stop, end)
            if low < high:
                yield from enumerate(_of_group(file, group, names, (low - start, high - start)), low)
            start = end


def _of_group(
    file: pq.ParquetFile, group: int, names: list[str], wanted: tuple[int, int]
) -> Iterator[list[Any] | BadSampleError]:
    due, stop = wanted
    row = 0
    damage = "the row group is shorter than the file says"
    try:
        for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=names):
            columns = [batch.column(name) for name in names]
            for place in range(due - row, min(stop - row, batch.num_rows)):
                due += 1
                yield values_at(columns, place)
            row += batch.num_rows
            if row >= stop:
                return
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # Arrow reports damage as an OSError without number; with one it is the storage's own trouble.
        if isinstance(error, StorageError) or getattr(error, "errno", None) is not None:
            raise
        damage = f"the row group is damaged: {error}"
    for _ in range(due, stop):
        yield BadSampleError("damaged_file", damage)
