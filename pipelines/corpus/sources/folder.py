"""A folder of images with captions in files of the same stem, or in one metadata file as Hugging Face has it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cluster import storage
from cluster.storage import absolute
from pipelines.corpus.samples import BadSampleError, Evidence, Fault, Message, Origin, Raw, check_count
from pipelines.corpus.sources.base import (
    MAX_IMAGES,
    Mapper,
    Unit,
    check_path,
    chunked,
    digest_of,
    listing,
    read_image,
    rows_of,
)
from pipelines.corpus.sources.conversations import (
    MAX_TEXT_BYTES,
    TEXT_EXTENSIONS,
    TEXT_FIELDS,
    check_places,
    first_text,
    from_files,
    messages_of,
)
from pipelines.corpus.sources.tars import PICTURES

METADATA = ("metadata.jsonl", "metadata.csv")
NAME_FIELD, NAMES_FIELD = "file_name", "file_names"
"""Where a row of the metadata names its image, or several of them in a list."""
_EMPTY: dict[str, Any] = {"texts": [], "row": None, "reason": "", "detail": ""}


@dataclass(frozen=True)
class FolderSource:
    """Images below a folder, in the order of their paths, each with `.json`, `.txt` or `.caption` of its stem.

    With a metadata file in the folder its rows are the records, in their order: each names one image (`file_name`) or
    several (`file_names`, a list, in JSON lines alone); images that no row names follow and are put aside. The first
    image's name without extension is the identity. A picture whose stem another picture has already is put aside, and
    so is a text without picture. Links in a folder are followed: it is the user's own.

    Args:
        folder: the folder.
        text: the metadata's field of captions or conversations; None for the first of those that people usually have.
        prompt: the user's words before a caption.
        max_bytes: the largest image that is read.
        max_images: most images of one row.
    """

    folder: str
    text: str | None
    prompt: str
    max_bytes: int
    max_images: int = MAX_IMAGES

    def __post_init__(self) -> None:
        """Require a folder with something in it."""
        object.__setattr__(self, "folder", absolute(self.folder))
        if not any(_extension(name) in PICTURES for name in self._names()):
            raise ValueError(f"images: {self.folder} holds no image, give a folder of images with captions")

    def fingerprint(self) -> str:
        """Over the names and sizes of all files and the bytes of the metadata file."""
        metadata = self._metadata()
        digest = storage.sha256_of(metadata) if metadata else ""
        return digest_of(digest, listing(self.folder, recursive=True))

    def units(self, samples_per_shard: int, mapped: Mapper = map) -> list[Unit]:  # noqa: ARG002 - one look lists all
        """Slices of the list of images or of the metadata."""
        names, metadata = self._names(), self._metadata()
        return chunked(_described(metadata, names) if metadata else _paired(names), samples_per_shard)

    def read(self, unit: Unit) -> Iterator[Raw | Fault]:
        """Open the image and the texts of each record."""
        for position, record in enumerate(rows_of(unit), unit.start):
            names = record["names"]
            origin: Origin = {"file": names[0] if len(names) == 1 else names}
            try:
                yield self._raw(position, record, origin)
            except BadSampleError as bad:
                held = self._evidence(record)
                yield Fault(reason=bad.reason, origin=origin, detail=bad.detail, evidence=held)

    def _names(self) -> list[str]:
        found = (str(name) for name, _ in listing(self.folder, recursive=True))
        return [name for name in found if not PurePosixPath(name).name.startswith(".")]

    def _metadata(self) -> str | None:
        uris = (storage.join(self.folder, name) for name in METADATA)
        return next((uri for uri in uris if storage.exists(uri)), None)

    def _raw(self, position: int, record: dict[str, Any], origin: Origin) -> Raw:
        if record["reason"]:
            raise BadSampleError(record["reason"], record["detail"])
        check_count(len(record["names"]), self.max_images)
        names = [check_path(name) for name in record["names"]]
        messages, own = self._texts(record)
        return Raw(
            position=position,
            identity=own or _stem(names[0]),
            images=tuple(self._image(name) for name in names),
            messages=messages,
            origin=origin,
        )

    def _image(self, name: str) -> bytes:
        return read_image(storage.join(self.folder, name), self.max_bytes)

    def _texts(self, record: dict[str, Any]) -> tuple[list[Message], str]:
        """The messages, and the record's own name where its JSON has one."""
        if (row := record["row"]) is not None:
            if self.text and self.text not in row:
                raise BadSampleError("bad_record", f"the metadata's row has no field {self.text!r}")
            texts = row.get(self.text) if self.text else first_text(row)
            messages = messages_of(texts, self.prompt)
            check_places(texts, len(record["names"]), listed=NAMES_FIELD in row)
            if not messages:
                raise BadSampleError("no_caption", f"the metadata's row has nothing in {self.text or TEXT_FIELDS}")
            return messages, _own(row)
        texts = {_extension(name): self._text(name) for name in record["texts"]}
        messages, described = from_files(texts, None, self.prompt)
        return messages, _own(described)

    def _text(self, name: str) -> bytes:
        with storage.open_read(storage.join(self.folder, name)) as stream:
            return stream.read(MAX_TEXT_BYTES + 1)

    def _evidence(self, record: dict[str, Any]) -> Evidence:
        """The images and the texts as they are, without following a path that was refused."""
        held: Evidence = {} if record["row"] is None else {"record": json.dumps(record["row"]).encode()}
        names = record["names"][: self.max_images]
        for number, name in enumerate(names):
            with suppress(BadSampleError):  # there is none, or none that may be read
                held["image" if len(names) == 1 else f"image_{number}"] = self._image(check_path(name))
        return held | {_extension(name): self._text(name) for name in record["texts"]}


def _own(record: dict[str, Any]) -> str:
    own = record.get("id")
    return str(own) if isinstance(own, str | int) and not isinstance(own, bool) else ""


def _extension(name: str) -> str:
    return PurePosixPath(name).suffix[1:].lower()


def _stem(name: str) -> str:
    return name[: len(name) - len(PurePosixPath(name).suffix)]


def _paired(names: list[str]) -> Iterator[dict[str, Any]]:
    """Images with the texts of their stem, by stem; and what has no partner."""
    stems: dict[str, tuple[list[str], list[str]]] = {}
    for name in names:
        extension = _extension(name)
        if extension in PICTURES or extension in TEXT_EXTENSIONS:
            stems.setdefault(_stem(name), ([], []))[extension in TEXT_EXTENSIONS].append(name)
    for stem in sorted(stems):
        pictures, texts = stems[stem]
        if not pictures:
            bad = {"reason": "missing_image", "detail": f"there is no image beside {texts[0]}"}
            yield _EMPTY | {"names": texts[:1], "texts": texts} | bad
        for place, name in enumerate(pictures):
            bad = {"reason": "duplicate_key", "detail": f"{pictures[0]} has the same name"} if place else {}
            yield _EMPTY | {"names": [name], "texts": texts} | bad


def _described(metadata: str, names: list[str]) -> Iterator[dict[str, Any]]:
    """The metadata's rows, then the images that none of them names."""
    seen: set[tuple[str, ...]] = set()
    for number, row in enumerate(_rows_of(metadata)):
        if (named := _named(row)) is None:
            place = f"{PurePosixPath(metadata).name}, row {number}"
            detail = f"the row has neither a {NAME_FIELD} nor a list of {NAMES_FIELD}"
            yield _EMPTY | {"names": [place], "row": row, "reason": "bad_record", "detail": detail}
            continue
        detail = f"an earlier row names {', '.join(map(repr, named))}" if tuple(named) in seen else ""
        yield _EMPTY | {"names": named, "row": row, "reason": "duplicate_key" if detail else "", "detail": detail}
        seen.add(tuple(named))
    used = {name for named in seen for name in named}
    unnamed = {"reason": "no_caption", "detail": "no row of the metadata names this image"}
    for name in names:
        if name not in used and _extension(name) in PICTURES:
            yield _EMPTY | {"names": [name]} | unnamed


def _named(row: object) -> list[str] | None:
    """The images that a row of the metadata names, or None where it names none."""
    if not isinstance(row, dict):
        return None
    listed = row.get(NAMES_FIELD)
    named: list[Any] = listed if isinstance(listed, list) else [row.get(NAME_FIELD)]
    return named if named and all(isinstance(name, str) and name for name in named) else None


def _rows_of(metadata: str) -> list[Any]:
    try:
        text = storage.read_bytes(metadata).decode("utf-8-sig")
        if metadata.endswith(".csv"):
            return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, csv.Error) as error:
        raise ValueError(f"images: {metadata} cannot be read ({error}), repair the file") from error
