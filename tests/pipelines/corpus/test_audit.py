"""The ledger and its proof: what an honest run writes passes, and every lie is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.corpus.audit import audit
from pipelines.corpus.feed import CorpusFeed
from pipelines.corpus.ledger import FEED, Ledger, open_ledger
from pipelines.corpus.manifest import Manifest
from pipelines.corpus.micro_batches import MicroBatch
from pipelines.corpus.reader import read_shard


@pytest.fixture
def feed(rendered: Callable[..., Manifest]) -> CorpusFeed:
    """Sixty samples: five whole steps of twelve per epoch."""
    return CorpusFeed(corpora=rendered().folder, seed=3, micro_batch=3, slots=4, samples=120, window_shards=3)


def keys_of(feed: CorpusFeed) -> list[str]:
    """Every key by position, from the shards themselves."""
    blend = feed.blend()
    manifest = blend.manifests[0]
    shards = [[one.key for one in read_shard(manifest.uri(n), s)] for n, s in enumerate(manifest.shards)]
    places = blend.places(0, feed.stop())
    return [shards[s][i] for s, i in zip(places.shard.tolist(), places.index.tolist(), strict=True)]


def train(
    feed: CorpusFeed, folder: Path, *, start: int, stop: int, world: int, change: Callable[..., Any] | None = None
) -> None:
    """What the ranks of one attempt write."""
    attempt, keys = open_ledger(str(folder), feed), keys_of(feed)
    for rank in range(world):
        ledger = Ledger(folder=str(folder), attempt=attempt, start=start, rank=rank, world=world)
        for step in range(start, stop):
            batches: list[MicroBatch | None] = []
            for slot in range(rank, feed.rounds(world) * world, world):
                if slot >= feed.slots:
                    batches.append(None)
                    continue
                low = (step * feed.slots + slot) * feed.micro_batch
                places = list(range(low, low + feed.micro_batch))
                names = [keys[place] for place in places]
                if change is not None:
                    places, names = change(step, slot, places, names)
                batches.append(MicroBatch(places, names, [[]] * 3, [{}] * 3))
            ledger.note(step, batches)
        ledger.flush()


def test_two_epochs_on_three_numbers_of_workers_are_proved(feed: CorpusFeed, tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    train(feed, folder, start=0, stop=4, world=3)
    train(feed, folder, start=2, stop=7, world=1)
    train(feed, folder, start=7, stop=10, world=8)
    found = audit(str(folder))
    assert (found.steps, found.samples, found.epochs) == (10, 120, 2.0)
    assert found.proved_shards == 2 * len(feed.blend().manifests[0].shards)
    assert (found.attempts, found.repeated, found.worlds) == (3, 2, (1, 3, 8))


def test_an_unfinished_epoch_is_proved_as_far_as_it_goes(feed: CorpusFeed, tmp_path: Path) -> None:
    train(feed, tmp_path / "ledger", start=0, stop=3, world=2)
    found = audit(str(tmp_path / "ledger"))
    assert (found.steps, found.samples) == (3, 36)
    assert 0 < found.proved_shards < len(feed.blend().manifests[0].shards)


def swap(step: int, slot: int, places: list[int], names: list[str]) -> tuple[list[int], list[str]]:
    return (places, [names[1], names[0], names[2]]) if (step, slot) == (1, 2) else (places, names)


def twice(step: int, slot: int, places: list[int], names: list[str]) -> tuple[list[int], list[str]]:
    return ([places[0], places[0], places[2]], names) if (step, slot) == (1, 2) else (places, names)


def elsewhere(step: int, slot: int, places: list[int], names: list[str]) -> tuple[list[int], list[str]]:
    return ([places[0], places[1], 99], names) if (step, slot) == (1, 2) else (places, names)


def same_key(_step: int, slot: int, places: list[int], names: list[str]) -> tuple[list[int], list[str]]:
    return (places, [names[0], names[1], "x"]) if slot == 2 else (places, names)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap, r"the keys seen of corpus-\d+\.tar are not those of the manifest, or in another order"),
        (twice, r"step 1: positions \[19\] are missing and \[18\] are there twice"),
        (elsewhere, r"step 1: positions \[20\] are missing and \[99\] are there twice or belong elsewhere"),
        (same_key, r"a key of corpus-\d+\.tar came twice in one epoch|the keys seen of"),
    ],
)
def test_a_run_that_strayed_is_found(feed: CorpusFeed, tmp_path: Path, change: Any, said: str) -> None:
    train(feed, tmp_path / "ledger", start=0, stop=5, world=2, change=change)
    with pytest.raises(ValueError, match=said):
        audit(str(tmp_path / "ledger"))


def test_a_missing_step_or_file_is_found(feed: CorpusFeed, tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    train(feed, folder, start=0, stop=2, world=2)
    train(feed, folder, start=3, stop=5, world=2)
    with pytest.raises(ValueError, match="step 2 is missing"):
        audit(str(folder))
    train(feed, folder, start=2, stop=5, world=2)
    next(folder.glob("0002-00001-*")).unlink()
    with pytest.raises(ValueError, match=r"step 2: positions \[27, 28, 29\] are missing"):
        audit(str(folder))
    next(folder.glob("0002-00000-*")).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        audit(str(folder))


def test_nothing_to_audit_is_said(feed: CorpusFeed, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no ledger"):
        audit(str(tmp_path))
    open_ledger(str(tmp_path), feed)
    with pytest.raises(ValueError, match="holds no step"):
        audit(str(tmp_path))


def test_another_corpus_or_feed_is_refused(feed: CorpusFeed, tmp_path: Path) -> None:
    open_ledger(str(tmp_path), feed)
    with pytest.raises(ValueError, match=r"belongs to another run \(slots differ\)"):
        open_ledger(str(tmp_path), CorpusFeed(corpora=feed.corpora, seed=3, micro_batch=3, slots=2, window_shards=3))
    place = tmp_path / FEED
    said = json.loads(place.read_text())
    place.write_text(json.dumps(said | {"digests": ["0" * 64]}))
    with pytest.raises(ValueError, match="but the run read 000000000000"):
        audit(str(tmp_path))
