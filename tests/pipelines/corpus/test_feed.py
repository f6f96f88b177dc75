"""What a feed promises before Ray is asked: steps, ends and errors."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.corpus.feed import SCHEMA, CorpusFeed, _read_span, iter_micro_batches
from pipelines.corpus.manifest import Manifest


class Blocks:
    """Stands for Ray's iterator: hands out the blocks that it was given."""

    def __init__(self, blocks: list[pa.Table]) -> None:
        self.blocks = blocks

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        return iter(self.blocks)


def block(positions: list[int]) -> pa.Table:
    count = len(positions)
    return pa.table([positions, ["k"] * count, [None] * count, [b"{}"] * count], schema=SCHEMA)


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


def test_each_rank_proves_its_positions() -> None:
    second = Blocks([block([4 * step + 2, 4 * step + 3]) for step in range(4)])
    batches = list(iter_micro_batches(second, feed(slots=2), rank=1, world=2))  # type: ignore[arg-type]
    assert [batch and batch.positions for batch in batches] == [[2, 3], [6, 7], [10, 11], [14, 15]]


def test_a_rank_without_a_slot_gets_a_void() -> None:
    void = pa.table([[-1, -1], ["", ""], [None, None], [b"", b""]], schema=SCHEMA)
    third = Blocks([block([4, 5]), void, block([14, 15]), void])
    batches = list(iter_micro_batches(third, feed(slots=5, samples=20), rank=2, world=3))  # type: ignore[arg-type]
    assert [batch and batch.positions for batch in batches] == [[4, 5], None, [14, 15], None]


@pytest.mark.parametrize(
    "positions", [[[2, 3], [0, 1]], [[0, 1], [2, 3]], [[0, 1], [4]], [[0, 1]], [[1, 0], [4, 5]], [[0, 1, 2], [4, 5]]]
)
def test_a_wrong_position_stops_the_rank(positions: list[list[int]]) -> None:
    blocks = Blocks([block(part) for part in positions])
    with pytest.raises(AssertionError, match=r"arrived where|the feed ended after 1 of 2"):
        list(iter_micro_batches(blocks, feed(samples=8, slots=2), rank=0, world=2))  # type: ignore[arg-type]


def test_blocks_beyond_the_last_whole_step_are_left() -> None:
    blocks = Blocks([block([0, 1]), block([6, 7]), block([12, 13])])
    batches = list(iter_micro_batches(blocks, feed(slots=3), rank=0, world=3))  # type: ignore[arg-type]
    assert [batch and batch.positions for batch in batches] == [[0, 1], [6, 7]]


@pytest.mark.parametrize("voids", [0, 4])
def test_a_span_is_read_from_a_position_in_its_middle(rendered: Callable[..., Manifest], voids: int) -> None:
    manifest = rendered()
    asked = feed(corpora=manifest.folder, window_shards=3, micro_batch=4, slots=2, samples=None)
    blend = asked.blend()
    low, high = blend.span(1)
    first, last = low + 5, high - 2
    numbers = {"id": np.array([0])}
    tables = list(_read_span(numbers, blend=blend, feed=asked.at(first), first=1, stop=last, voids=voids))
    real = [table for table in tables if table["position"][0].as_py() != -1]
    found = pa.concat_tables(real)
    assert found["position"].to_pylist() == list(range(first, last))
    assert all((table["position"][0].as_py() - first) % 4 == 0 for table in real)
    order = blend.orders[0]
    keys = [f"{shard * 8 + index:09d}" for shard, index in order.samples(order.window(1))[5:-2]]
    assert [key[:9] for key in found["key"].to_pylist()] == keys
    rows = pa.concat_tables(tables)["position"].to_pylist()
    for place, position in enumerate(rows):  # voids stand behind each whole step of eight
        if position != -1 and voids and (position - first + 1) % 8 == 0:
            assert rows[place + 1 : place + 1 + voids] == [-1] * voids
    assert rows.count(-1) == voids * ((last - first) // 8)


def test_nothing_left_to_deliver_is_said(rendered: Callable[..., Manifest]) -> None:
    folder = rendered().folder
    with pytest.raises(ValueError, match=r"fewer than 2 samples \(slots=1 x micro_batch=2\) are left from position 60"):
        feed(corpora=folder, samples=None, start=60).dataset()
    with pytest.raises(FileNotFoundError, match="qmop prepare"):
        feed(corpora="/nowhere").dataset()
