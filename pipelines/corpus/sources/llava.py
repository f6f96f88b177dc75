"""LLaVA instruction data: one JSON list of conversations and the folder that its image paths are relative to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cluster import storage
from cluster.storage import absolute
from pipelines.corpus.samples import BadSampleError, Fault, Origin, Raw, check_count
from pipelines.corpus.sources.base import MAX_IMAGES, Mapper, Unit, check_path, cut, digest_of, listing, read_image
from pipelines.corpus.sources.conversations import check_places, kind, messages_of


@dataclass(frozen=True)
class LlavaSource:
    """Records `{"id", "image"?, "conversations": [{"from": "human" | "gpt", "value"}]}`; text-only rows are kept.

    `image` is a path or a list of paths, with as many `<image>` in the turns as there are paths, or none. Ids need not
    be unique: LLaVA names its records by their pictures.

    Args:
        annotations: the JSON file.
        images: the folder of the images.
        max_bytes: the largest image that is read.
        max_images: most images of one record.
    """

    annotations: str
    images: str
    max_bytes: int
    max_images: int = MAX_IMAGES

    def __post_init__(self) -> None:
        """Require the image folder."""
        object.__setattr__(self, "annotations", absolute(self.annotations))
        object.__setattr__(self, "images", absolute(self.images))
        if not storage.exists(self.images):
            raise FileNotFoundError(f"images: the folder {self.images} does not exist, correct the path")

    def fingerprint(self) -> str:
        """Over the JSON's bytes and the names and sizes of all files in the image folder."""
        return digest_of(storage.sha256_of(self.annotations), listing(self.images, recursive=True))

    def units(self, samples_per_shard: int, mapped: Mapper = map) -> list[Unit]:  # noqa: ARG002 - one file lists all
        """Slices of the list; each carries its own records."""
        records = self._load()
        return [
            Unit(index=unit.index, start=unit.start, stop=unit.stop, payload=records[unit.start : unit.stop])
            for unit in cut(len(records), samples_per_shard)
        ]

    def read(self, unit: Unit) -> Iterator[Raw | Fault]:
        """Open the image of each record of a slice."""
        for position, record in enumerate(unit.payload, unit.start):
            origin = self._origin(position, record)
            try:
                yield self._raw(position, record, origin)
            except BadSampleError as bad:
                held = {"record": json.dumps(record).encode()}
                yield Fault(reason=bad.reason, origin=origin, detail=bad.detail, evidence=held)

    def _load(self) -> list[Any]:
        try:
            records = json.loads(storage.read_bytes(self.annotations))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"annotations: {self.annotations} is not valid JSON ({error}), repair the file") from error
        if not isinstance(records, list):
            raise ValueError(
                f"annotations: {self.annotations} holds a JSON {kind(records)}, expected a list of LLaVA records"
            )
        if not records:
            raise ValueError(f"annotations: {self.annotations} is an empty list, there is nothing to prepare")
        return records

    def _origin(self, position: int, record: object) -> Origin:
        origin: Origin = {"file": PurePosixPath(self.annotations).name, "record": position}
        if isinstance(record, dict):
            origin |= {name: record[name] for name in ("id", "image") if isinstance(record.get(name), str | int | list)}
        return origin

    def _raw(self, position: int, record: object, origin: Origin) -> Raw:
        if not isinstance(record, dict):
            raise BadSampleError("bad_record", f"the record is a JSON {kind(record)}, expected an object")
        turns = _turns(record)
        messages = messages_of(turns, "")
        names = _names(record)
        check_places(turns, len(names), listed=isinstance(record.get("image"), list))
        check_count(len(names), self.max_images)
        identity = record.get("id")
        return Raw(
            position=position,
            identity=str(identity) if isinstance(identity, str | int) else "",
            images=tuple(self._image(name) for name in names),
            messages=messages,
            origin=origin,
        )

    def _image(self, name: str) -> bytes:
        return read_image(storage.join(self.images, check_path(name)), self.max_bytes)


def _names(record: dict[str, Any]) -> list[str]:
    """The paths of the images that a record names, one or several or none."""
    named = record.get("image")
    if named is None or named == "":
        return []
    names = named if isinstance(named, list) else [named]
    for name in names:
        if not isinstance(name, str):
            raise BadSampleError("bad_record", f"image has a JSON {kind(name)}, expected a path or a list of paths")
    return names


def _turns(record: dict[str, Any]) -> list[Any]:
    turns = record.get("conversations")
    if turns is None or turns == []:
        raise BadSampleError("no_caption", "conversations is missing or empty")
    if not isinstance(turns, list):
        raise BadSampleError("bad_record", f"conversations is a JSON {kind(turns)}, expected a list")
    return turns
