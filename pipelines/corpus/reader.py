"""Shards back to samples: fetched whole, proved against the manifest, and only then opened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import tenacity

from cluster import storage
from pipelines.corpus.manifest import Shard
from pipelines.corpus.shards import RECORD, Entry, ShardError, index_shard

_ATTEMPTS = 4


@dataclass(frozen=True)
class Stored:
    """A sample as a shard holds it: encoded images in order, record as JSON bytes."""

    key: str
    images: list[bytes]
    record: bytes


@dataclass(frozen=True)
class OpenShard:
    """A shard in memory. Samples are cut out of it one by one, so nothing is held twice."""

    data: bytes
    entries: list[Entry]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.entries)

    def __getitem__(self, index: int) -> Stored:
        """One sample, by its place in the shard."""
        entry = self.entries[index]
        images = [entry.part(self.data, extension) for extension in entry.images]
        return Stored(entry.key, images, entry.part(self.data, RECORD))


def open_shard(uri: str, expected: Shard) -> OpenShard:
    """Fetch a shard and prove that it is the one that the manifest describes.

    A fetch that breaks off, comes back short or differs is repeated from the first byte.

    Raises:
        FileNotFoundError: if the shard is gone.
        ShardError: if its bytes or its sample count differ from the manifest after several attempts.
    """
    data = _fetch(uri, expected)
    entries = index_shard(data, uri)
    if len(entries) != expected.nsamples:
        raise ShardError(f"shard {uri}: holds {len(entries)} samples, the manifest says {expected.nsamples}")
    return OpenShard(data, entries)


def read_shard(uri: str, expected: Shard) -> Iterator[Stored]:
    """All samples of a shard in their own order; raises like `open_shard`, before the first sample."""
    shard = open_shard(uri, expected)
    return (shard[index] for index in range(len(shard)))


@tenacity.retry(
    retry=tenacity.retry_if_exception(
        lambda error: isinstance(error, OSError | ShardError) and not isinstance(error, FileNotFoundError)
    ),
    stop=tenacity.stop_after_attempt(_ATTEMPTS),
    wait=tenacity.wait_exponential_jitter(initial=0.2, max=5.0),
    reraise=True,
)
def _fetch(uri: str, expected: Shard) -> bytes:
    data = storage.read_bytes(uri)
    if len(data) != expected.filesize or hashlib.sha256(data).hexdigest() != expected.sha256:
        raise ShardError(f"shard {uri}: its bytes differ from the manifest, prepare the corpus again")
    return data
