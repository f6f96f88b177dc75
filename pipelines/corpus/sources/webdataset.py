"""WebDataset tars of any maker: `<key>.jpg` with `<key>.txt`, `<key>.caption` or `<key>.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from cluster import storage
from cluster.storage import absolute
from pipelines.corpus.samples import BadSampleError, Fault, Origin, Raw
from pipelines.corpus.sources.base import Mapper, Unit, check_path, chunked, digest_of, matching, rows_of
from pipelines.corpus.sources.conversations import TEXT_EXTENSIONS, first_text, from_files, speaks_of_image
from pipelines.corpus.sources.tars import Group, content, evidence, lost, picture_of, survey

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
    """

    tars: str
    prompt: str
    max_bytes: int

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
        group = Group(key, {name: (place[0], place[1]) for name, place in members.items()}, reason, detail)
        try:
            group.require_good()
            return self._raw(position, key, content(stream, group, self.max_bytes), origin)
        except BadSampleError as bad:
            held = evidence(stream, group, self.max_bytes)
            return Fault(reason=bad.reason, origin=origin, detail=bad.detail, evidence=held)

    def _raw(self, position: int, key: str, members: Mapping[str, bytes], origin: Origin) -> Raw:
        picture = picture_of(members)
        files = {name: members[name] for name in TEXT_EXTENSIONS if name in members}
        messages, record = from_files(files, None, self.prompt)
        if picture is None and not _text_only(record):
            raise BadSampleError("missing_image", f"{origin['file']} has no image under this key")
        image = None if picture is None else members[picture]
        return Raw(position=position, identity=identity(record, key), image=image, messages=messages, origin=origin)


def identity(record: Mapping[str, Any], key: str) -> str:
    """The record's own name: its `id` where it has one, else its key in the tar."""
    own = record.get("id")
    return str(own) if isinstance(own, str | int) and not isinstance(own, bool) else key


def _text_only(record: Mapping[str, Any]) -> bool:
    """Whether a record without picture is a conversation that needs none."""
    texts = first_text(record)
    return isinstance(texts, list) and not record.get("image") and not speaks_of_image(texts)


def _missing(uri: str, row: Any) -> Fault:
    origin: Origin = {"file": PurePosixPath(uri).name, "key": row[1]}
    return Fault(reason="damaged_file", origin=origin, detail=row[3] or f"{uri} does not exist any more")
