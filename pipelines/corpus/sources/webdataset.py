"""WebDataset tars of any maker: `<key>.jpg`, or `<key>.0.jpg` and so on, with `<key>.txt`, `.caption` or `.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from cluster import storage
from cluster.storage import absolute
from pipelines.corpus.samples import BadSampleError, Fault, Origin, Raw
from pipelines.corpus.sources.base import MAX_IMAGES, Mapper, Unit, check_path, chunked, digest_of, matching, rows_of
from pipelines.corpus.sources.conversations import check_places, first_text, from_files
from pipelines.corpus.sources.tars import Content, Group, lost, raw_or_fault, survey

_INDEX_KIND = "wids-shard-index-v1"
_INDEXES = ("index.json", "manifest.json")

Row = tuple[str, str, str, str, dict[str, tuple[int, int]]]
"""Tar, key, reason and detail if it is bad already, members."""


@dataclass(frozen=True)
class WebDatasetSource:
    """Tars in the order of their names, or of a wids index that lies beside them; an index also says what is lost.

    Members of a key that do not stand together are gathered. A key may come again in another tar.

    Args:
        tars: folder, file or glob.
        prompt: the user's words before a caption.
        max_bytes: the largest image that is read.
        max_images: most images of one sample.
    """

    tars: str
    prompt: str
    max_bytes: int
    max_images: int = MAX_IMAGES

    def __post_init__(self) -> None:
        """Require at least one tar."""
        object.__setattr__(self, "tars", absolute(self.tars))
        if not self._promised():
            raise ValueError(f"images: {self.tars} holds no .tar file, give a folder, a file or a glob of tars")

    def fingerprint(self) -> str:
        """Over the names and sizes of the tars and the counts of their index."""
        promised = self._promised()
        sizes = matching(self.tars, ".tar")
        return digest_of([[PurePosixPath(uri).name, sizes.get(uri), count] for uri, count in promised.items()])

    def units(self, samples_per_shard: int, mapped: Mapper = map) -> list[Unit]:
        """The tars are gone through once; units carry the places of their members."""
        found = mapped(self._surveyed, self._promised().items())
        return chunked((row for rows in found for row in rows), samples_per_shard)

    def read(self, unit: Unit) -> Iterator[Raw | Fault]:
        """Cut the members of a slice out of its tars."""
        position = unit.start
        for uri, rows in groupby(rows_of(unit), key=itemgetter(0)):
            if not storage.exists(uri):
                for row in rows:
                    yield _missing(uri, row)
                    position += 1
                continue
            with storage.open_read(uri) as stream:
                for row in rows:
                    yield self._sample(stream, position, row)
                    position += 1

    def _promised(self) -> dict[str, int | None]:
        """The tars in order, each with its number of samples where an index says it."""
        names = [storage.join(self.tars, name) for name in _INDEXES]
        for uri in names if "*" not in self.tars else []:
            if storage.exists(uri) and (listed := self._listed(uri)):
                return listed
        return dict.fromkeys(matching(self.tars, ".tar"))

    def _listed(self, uri: str) -> dict[str, int | None]:
        try:
            document = json.loads(storage.read_bytes(uri))
            if not isinstance(document, dict) or document.get("__kind__") != _INDEX_KIND:
                return {}
            names = {check_path(shard["url"]): int(shard["nsamples"]) for shard in document["shardlist"]}
            "".join(names).encode()
        except OSError:
            raise
        except BadSampleError as bad:
            raise ValueError(
                f"{uri} lists a shard elsewhere: {bad.detail}, only tars beside the index are read"
            ) from bad
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{uri} is not a readable wids index ({error}), repair or remove it") from error
        return {storage.join(self.tars, name): count for name, count in names.items()}

    def _surveyed(self, tar: tuple[str, int | None]) -> list[Row]:
        uri, promised = tar
        try:
            found = survey(uri)
        except FileNotFoundError:
            gone = ("damaged_file", "the index lists this tar, but it does not exist")
            return [(uri, "", *gone, {}) for _ in range(promised or 0)]
        groups = [*found.groups, *lost(found, promised)]
        return [(uri, group.key, group.reason, group.detail, group.members) for group in groups]

    def _sample(self, stream: BinaryIO, position: int, row: Any) -> Raw | Fault:
        uri, key, reason, detail, members = row
        origin: Origin = {"file": PurePosixPath(uri).name, "key": key}
        group, limits = Group(key, members, reason, detail), (self.max_bytes, self.max_images)
        return raw_or_fault(stream, group, limits, origin, partial(self._raw, position, key, origin))

    def _raw(self, position: int, key: str, origin: Origin, found: Content) -> Raw:
        messages, record = from_files(found.texts, None, self.prompt)
        _check_images(record, found, str(origin["file"]))
        return Raw(
            position=position, identity=identity(record, key), images=found.images, messages=messages, origin=origin
        )


def identity(record: Mapping[str, Any], key: str) -> str:
    """The record's own name: its `id` where it has one, else its key in the tar."""
    own = record.get("id")
    return str(own) if isinstance(own, str | int) and not isinstance(own, bool) else key


def _check_images(record: Mapping[str, Any], found: Content, file: str) -> None:
    """Hold the images against what the record says of them; only a conversation may need none."""
    texts, number, said = first_text(record), len(found.images), record.get("images")
    if not number and (record.get("image") or not isinstance(texts, list)):
        raise BadSampleError("missing_image", f"{file} has no image under this key")
    if isinstance(said, int) and not isinstance(said, bool) and said != number:
        raise BadSampleError("missing_image", f"{file} has {number} images under this key, the record says {said}")
    check_places(texts, number, listed=found.listed)


def _missing(uri: str, row: Any) -> Fault:
    origin: Origin = {"file": PurePosixPath(uri).name, "key": row[1]}
    return Fault(reason="damaged_file", origin=origin, detail=row[3] or f"{uri} does not exist any more")
