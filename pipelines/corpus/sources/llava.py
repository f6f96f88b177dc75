"""LLaVA instruction data: one JSON list of conversations and the folder that its image paths are relative to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cluster import storage
from cluster.storage import absolute
from pipelines.corpus.samples import IMAGE_TOKEN, BadSampleError, Fault, Message, Origin, Raw
from pipelines.corpus.sources.base import Unit, cut, digest_of, listing, read_image

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True)
class LlavaSource:
    """Records `{"id", "image"?, "conversations": [{"from": "human" | "gpt", "value"}]}`; text-only rows are kept.

    Args:
        annotations: the JSON file.
        images: the folder of the images.
        max_bytes: the largest image that is read.
    """

    annotations: str
    images: str
    max_bytes: int

    def __post_init__(self) -> None:
        """Require the image folder."""
        object.__setattr__(self, "annotations", absolute(self.annotations))
        object.__setattr__(self, "images", absolute(self.images))
        if not storage.exists(self.images):
            raise FileNotFoundError(f"images: the folder {self.images} does not exist, correct the path")

    def fingerprint(self) -> str:
        """Over the JSON's bytes and the names and sizes of all files in the image folder."""
        return digest_of(storage.sha256_of(self.annotations), listing(self.images, recursive=True))

    def units(self, samples_per_shard: int) -> list[Unit]:
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
                yield Fault(reason=bad.reason, origin=origin, detail=bad.detail)

    def _load(self) -> list[Any]:
        try:
            records = json.loads(storage.read_bytes(self.annotations))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"annotations: {self.annotations} is not valid JSON ({error}), repair the file") from error
        if not isinstance(records, list):
            raise ValueError(
                f"annotations: {self.annotations} holds a JSON {_kind(records)}, expected a list of LLaVA records"
            )
        if not records:
            raise ValueError(f"annotations: {self.annotations} is an empty list, there is nothing to prepare")
        return records

    def _origin(self, position: int, record: object) -> Origin:
        origin: Origin = {"file": PurePosixPath(self.annotations).name, "record": position}
        if isinstance(record, dict):
            origin |= {name: record[name] for name in ("id", "image") if isinstance(record.get(name), str | int)}
        return origin

    def _raw(self, position: int, record: object, origin: Origin) -> Raw:
        if not isinstance(record, dict):
            raise BadSampleError("bad_record", f"the record is a JSON {_kind(record)}, expected an object")
        turns = _turns(record)
        image = self._image(record, speaks_of_one=any(IMAGE_TOKEN in turn["value"] for turn in turns))
        identity = record.get("id")
        return Raw(
            position=position,
            identity=str(identity) if isinstance(identity, str | int) else "",
            image=image,
            messages=[_message(turn) for turn in turns],
            origin=origin,
        )

    def _image(self, record: dict[str, Any], *, speaks_of_one: bool) -> bytes | None:
        name = record.get("image")
        if name is None or name == "":
            if speaks_of_one:
                raise BadSampleError("missing_image", f"the text has {IMAGE_TOKEN} but the record names no image")
            return None
        if not isinstance(name, str):
            raise BadSampleError("bad_record", f"image is a JSON {_kind(name)}, expected one path")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or ":" in name or "\\" in name or "\0" in name:
            raise BadSampleError("unsafe_path", f"image is {name!r}, expected a path inside the image folder")
        return read_image(storage.join(self.images, name), self.max_bytes)


def _turns(record: dict[str, Any]) -> list[dict[str, str]]:
    turns = record.get("conversations")
    if turns is None or turns == []:
        raise BadSampleError("no_caption", "conversations is missing or empty")
    if not isinstance(turns, list):
        raise BadSampleError("bad_record", f"conversations is a JSON {_kind(turns)}, expected a list")
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("from") not in ROLES:
            raise BadSampleError("bad_record", f"a turn is not from one of {', '.join(ROLES)}")
        if turn.get("value") is None:
            raise BadSampleError("no_caption", f"a turn from {turn['from']} has no value")
        if not isinstance(turn["value"], str):
            raise BadSampleError("bad_record", f"a value is a JSON {_kind(turn['value'])}, expected a text")
    return turns


def _message(turn: dict[str, str]) -> Message:
    """A turn in our words. The image always stands before the first text, so its token is dropped."""
    return {"role": ROLES[turn["from"]], "text": turn["value"].replace(IMAGE_TOKEN, "").strip()}


def _kind(value: object) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
