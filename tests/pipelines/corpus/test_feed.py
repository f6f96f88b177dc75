"""What a feed promises before Ray is asked: steps, ends and errors."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipelines.corpus import feed as corpus_feed
from pipelines.corpus.feed import CorpusFeed, _read_span
from pipelines.corpus.manifest import Manifest


def feed(**changes: Any) -> CorpusFeed:
    fields: dict[str, Any] = {"corpora": "/corpus", "seed": 0, "micro_batch": 2, "samples": 16}
    return CorpusFeed(**(fields | changes))


def test_a_feed_travels() -> None:
    assert pickle.loads(pickle.dumps(feed())) == feed()
    assert feed().at(6).start == 6


@pytest.mark.parametrize(("slots", "steps"), [(1, 8), (2, 4), (3, 2), (5, 1), (9, 0)])
def test_the_last_incomplete_step_is_not_delivered(slots: int, steps: int) -> None:
    for samples in (16, 17):
        asked = feed(samples=samples, slots=slots)
        assert (asked.steps(), asked.stop()) == (steps, steps * 2 * slots)


@pytest.mark.parametrize(("world", "rounds"), [(1, 4), (2, 2), (3, 2), (4, 1), (8, 1)])
def test_workers_share_the_slots_of_a_step(world: int, rounds: int) -> None:
    assert feed(slots=4).rounds(world) == rounds


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"micro_batch": 0}, "micro_batch is 0"), ({"start": -1}, "start is -1"), ({"start": 17}, "start is 17")],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        feed(**changes)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("share_bytes", [1, 50_000, 10**9])
def test_a_span_is_read_from_a_position_in_its_middle(
    rendered: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, world: int, share_bytes: int
) -> None:
    monkeypatch.setattr(corpus_feed, "_SHARE_BYTES", share_bytes)
    manifest = rendered()
    asked = feed(corpora=manifest.folder, window_shards=3, micro_batch=2, slots=2, samples=None)
    blend = asked.blend()
    low, high = blend.span(1)
    first, last = low + 5, high - 2
    tables = list(_read_span({"id": np.array([0])}, blend=blend, feed=asked.at(first), first=1, stop=last, world=world))
    assert len(tables) == world if share_bytes > 50_000 else len(tables) % world == 0
    assert all(table.num_rows == 1 for table in tables)
    keys: dict[int, str] = {}
    for number, table in enumerate(tables):
        row = table.to_pylist()[0]
        assert {(position - first) // 2 % 2 % world for position in row["position"]} <= {number % world}
        keys |= dict(zip(row["position"], row["key"], strict=True))
        assert all(image.startswith(b"\x89PNG") for (image,) in row["images"])
    assert sorted(keys) == list(range(first, last))
    order = blend.orders[0]
    expected = [f"{shard * 8 + index:09d}" for shard, index in order.samples(order.window(1))[5:-2]]
    assert [keys[position][:9] for position in range(first, last)] == expected


def test_nothing_left_to_deliver_is_said(rendered: Callable[..., Manifest]) -> None:
    folder = rendered().folder
    with pytest.raises(ValueError, match=r"fewer than 2 samples \(slots=1 x micro_batch=2\) are left from position 60"):
        feed(corpora=folder, samples=None, start=60).dataset()
    with pytest.raises(FileNotFoundError, match="qmop prepare"):
        feed(corpora="/nowhere").dataset()
