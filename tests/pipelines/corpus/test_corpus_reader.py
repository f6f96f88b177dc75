"""Reading shards through storage that fails."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import tenacity

from cluster import storage
from pipelines.corpus import reader
from pipelines.corpus.manifest import Manifest
from pipelines.corpus.reader import open_shard, read_shard
from pipelines.corpus.shards import ShardError


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader._fetch.retry, "wait", tenacity.wait_none())  # type: ignore[attr-defined]


def test_samples_come_whole_and_in_order(rendered: Callable[..., Manifest]) -> None:
    manifest = rendered()
    samples = [
        sample for number, shard in enumerate(manifest.shards) for sample in read_shard(manifest.uri(number), shard)
    ]
    assert len(samples) == manifest.written == 60
    assert [sample.key for sample in samples] == sorted(sample.key for sample in samples)
    record = json.loads(samples[7].record)
    assert record["id"] == "scene-0-0000002-1"
    (image,) = samples[7].images
    assert image.startswith(b"\x89PNG")


class Faulty:
    """Storage whose reads break off at a random byte: with an error, or silently short."""

    def __init__(self, faults: int, seed: int) -> None:
        self.left, self.draws, self.real = faults, random.Random(seed), storage.read_bytes

    def __call__(self, uri: str) -> bytes:
        data = self.real(uri)
        if not self.left:
            return data
        self.left -= 1
        if self.draws.random() < 0.5:
            raise OSError("AWS Error INTERNAL_FAILURE")
        return data[: self.draws.randrange(len(data))]


@pytest.mark.parametrize("seed", range(5))
def test_a_fetch_that_breaks_off_is_repeated_and_nothing_comes_twice(
    rendered: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    manifest = rendered()
    whole = [sample.key for sample in read_shard(manifest.uri(0), manifest.shards[0])]
    monkeypatch.setattr(storage, "read_bytes", Faulty(3, seed))
    assert [sample.key for sample in read_shard(manifest.uri(0), manifest.shards[0])] == whole


def test_a_fault_that_stays_is_named(rendered: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = rendered()
    monkeypatch.setattr(storage, "read_bytes", Faulty(99, 1))
    with pytest.raises((OSError, ShardError), match=r"INTERNAL_FAILURE|differ from the manifest"):
        open_shard(manifest.uri(0), manifest.shards[0])


def test_a_changed_shard_is_refused_before_its_first_sample(rendered: Callable[..., Manifest]) -> None:
    manifest = rendered()
    path = Path(manifest.uri(0))
    data = bytearray(path.read_bytes())
    data[-2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"corpus-000000\.tar: its bytes differ"):
        read_shard(str(path), manifest.shards[0])


def test_a_missing_shard_is_not_waited_for(rendered: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = rendered()
    Path(manifest.uri(0)).unlink()
    calls = io.StringIO()
    real = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri: calls.write("x") and real(uri))
    with pytest.raises(FileNotFoundError):
        open_shard(manifest.uri(0), manifest.shards[0])
    assert calls.getvalue() == "x"
