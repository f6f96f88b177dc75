"""Rows of the two table formats in which sources are passed on: parquet with image structs, TSV with base64 pictures.

The TSV is VLMEvalKit's: one row per question with `index`, and in `image` either base64 or, to save room, the index of
another row that holds the picture.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
import re
import sys
from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qmop.vtcbench.natural.samples import Fault, RowError, Sample

_ROWS = 16
"""Rows that are unpacked at once: pictures are large."""
_LONGEST_INDEX = 64
"""VLMEvalKit's own bound: what is longer in `image` is a picture."""
_PART = re.compile(r"-\d{5}-of-\d{5}.*$")

Row = dict[str, Any]
Load = Callable[[], bytes]
"""Reads an encoded picture."""
Found = tuple[str, Row, Callable[[], Load]]
"""A row with its id, and how to find out where its picture is, which may be a `RowError`."""


def files_of(path: str | Path, suffix: str) -> list[Path]:
    """The file itself, or the files of a suffix anywhere below a folder, in the order of their names.

    Raises:
        FileNotFoundError: if there is none.
    """
    place = Path(path)
    found = [place] if place.is_file() else sorted(place.rglob(f"*{suffix}")) if place.is_dir() else []
    if not found:
        raise FileNotFoundError(f"{path} holds no {suffix} file: give the file, or the folder that it lies in")
    return found


def split_of(file: Path) -> str:
    """The split that a file of Hugging Face belongs to: `test` of `test-00000-of-00002.parquet`."""
    return _PART.sub("", file.stem)


def is_tsv(path: str | Path) -> bool:
    """Whether a copy is a TSV."""
    return Path(path).suffix.lower() == ".tsv"


def columns_of(file: Path) -> list[str]:
    """Column names of a parquet file.

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        return list(pq.read_schema(file).names)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a readable parquet file ({error}): fetch it again") from error


def parquet_rows(file: Path, needed: Sequence[str], wanted: Sequence[str] = ()) -> Iterator[Row]:
    """Rows of a parquet file, of the columns that are needed and of those wanted ones that exist.

    Raises:
        ValueError: if a needed column is missing or the file is damaged.
    """
    names = columns_of(file)
    _require(file, names, needed)
    picked = [name for name in (*needed, *wanted) if name in names]
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_ROWS, columns=picked):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is damaged ({error}): fetch it again") from error


def shown_rows(
    path: Path, named: Callable[[Row], str], needed: Sequence[str], wanted: Sequence[str] = ()
) -> Iterator[Found]:
    """Rows of all parquet files of a copy that hold their picture in the column `image`.

    Args:
        path: the file, or a folder above several.
        named: gives a row's id.
        needed: columns, as for `parquet_rows`.
        wanted: as there.

    Raises:
        FileNotFoundError: if there is no parquet file.
        ValueError: if a needed column is missing or a file is damaged.
    """
    for file in files_of(path, ".parquet"):
        for row in parquet_rows(file, needed, wanted):
            yield named(row), row, partial(from_struct, row["image"], file.parent)


def tsv_rows(file: Path, needed: Sequence[str]) -> Iterator[Row]:
    """Rows of a TSV with every `image` that points to another row replaced by that row's.

    Pictures that several rows share are held only until the last of them.

    Raises:
        ValueError: if a needed column is missing.
    """
    shared, late = _shared(file, needed)
    held = {row["index"]: row["image"] for row in _tsv(file, needed) if row["index"] in late} if late else {}
    for row in _tsv(file, needed):
        index, image = row["index"], row["image"] or ""
        if shared[index] and len(image) > _LONGEST_INDEX:
            held[index] = image
        if 0 < len(image) <= _LONGEST_INDEX:
            shared[image] -= 1
            row["image"] = held.get(image, "")
            if not shared[image]:
                held.pop(image, None)
        yield row


def from_struct(value: object, beside: Path) -> Load:
    """How to read the picture of a parquet cell: a struct of bytes and path, plain bytes, or a list of one of them.

    Raises:
        RowError: if the cell holds no picture.
    """
    if isinstance(value, list):
        if len(value) != 1:
            raise RowError("several_pictures", f"it has {len(value)} pictures, an item has one")
        value = value[0]
    if isinstance(value, dict):
        path, value = value.get("path"), value.get("bytes")
        if value is None and isinstance(path, str) and path:
            return (beside / path).read_bytes
    if not isinstance(value, bytes) or not value:
        raise RowError("no_picture", "it holds no picture")
    held = value
    return lambda: held


def from_base64(text: object) -> Load:
    """How to read a picture in base64.

    Raises:
        RowError: if there is none.
    """
    held = text or ""
    if isinstance(held, str) and held.startswith("["):  # VLMEvalKit writes several pictures as a list
        pictures = as_list(held)
        if len(pictures) != 1:
            raise RowError("several_pictures", f"it has {len(pictures)} pictures, an item has one")
        held = pictures[0]
    if not isinstance(held, str) or not held:
        raise RowError("no_picture", "it holds no picture")
    coded = held

    def decoded() -> bytes:
        try:
            return base64.b64decode(coded, validate=True)
        except binascii.Error as error:
            raise ValueError(f"it is no base64: {error}") from error

    return decoded


def as_list(text: str) -> list[str]:
    """A list that was written as JSON or as Python writes one; any other text alone."""
    for read in (json.loads, literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError):
            continue
        if isinstance(value, list):
            return [str(part) for part in value]
    return [text]


def from_file(file: Path) -> Load:
    """How to read a picture that lies in a file."""
    return file.read_bytes


def samples_of(
    source: str, rows: Iterable[Found], make: Callable[[str, Row, Load], Sample]
) -> Iterator[Sample | Fault]:
    """A sample of each row, or the fault in its place."""
    for name, row, find in rows:
        try:
            yield make(name, row, find())
        except RowError as bad:
            yield Fault(source=source, id=name, reason=bad.reason, detail=f"{source} {name}: {bad}")


def _require(file: Path, names: Sequence[str], needed: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in names]:
        raise ValueError(
            f"{file} has no column {', '.join(missing)}, only {', '.join(names)}: give the copy of another maker"
        )


def _tsv(file: Path, needed: Sequence[str]) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a picture is one field
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream, delimiter="\t")
        _require(file, list(reader.fieldnames or []), ("index", "image", *needed))
        yield from reader


def _shared(file: Path, needed: Sequence[str]) -> tuple[Counter[str], set[str]]:
    """How many rows point to each row's picture, and the rows that are pointed to before they come."""
    pointers: Counter[str] = Counter()
    late: set[str] = set()
    seen: set[str] = set()
    for row in _tsv(file, needed):
        seen.add(row["index"])
        image = row["image"] or ""
        if 0 < len(image) <= _LONGEST_INDEX:
            pointers[image] += 1
            if image not in seen:
                late.add(image)
    return pointers, late
