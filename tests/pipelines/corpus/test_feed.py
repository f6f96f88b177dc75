"""What a feed promises before Ray is asked: steps, ends and errors."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.corpus.feed import SCHEMA, CorpusFeed, _read_window, iter_micro_batches
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
    fields: dict[str, Any] = {"manifest_uri": "/corpus", "seed": 0, "micro_batch": 2, "samples": 16}
    return CorpusFeed(**(fields | changes))


def test_a_feed_travels() -> None:
    assert pickle.loads(pickle.dumps(feed())) == feed()
    assert feed().at(6).start == 6


@pytest.mark.parametrize(("world", "steps"), [(1, 8), (2, 4), (3, 2), (5, 1), (9, 0)])
def test_the_last_incomplete_step_is_not_delivered(world: int, steps: int) -> None:
    assert feed().steps(world) == feed(samples=17).steps(world) == steps


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"micro_batch": 0}, "micro_batch is 0"), ({"start": -1}, "start is -1"), ({"start": 17}, "start is 17")],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        feed(**changes)


def test_each_rank_proves_its_positions() -> None:
    second = Blocks([block([4 * step + 2, 4 * step + 3]) for step in range(4)])
    batches = list(iter_micro_batches(second, feed(), rank=1, world=2))  # type: ignore[arg-type]
    assert [batch.positions for batch in batches] == [[2, 3], [6, 7], [10, 11], [14, 15]]


@pytest.mark.parametrize(
    "positions", [[[2, 3], [0, 1]], [[0, 1], [2, 3]], [[0, 1], [4]], [[0, 1]], [[1, 0], [4, 5]], [[0, 1, 2], [4, 5]]]
)
def test_a_wrong_position_stops_the_rank(positions: list[list[int]]) -> None:
    blocks = Blocks([block(part) for part in positions])
    with pytest.raises(AssertionError, match=r"arrived where|the feed ended after 1 of 2"):
        list(iter_micro_batches(blocks, feed(samples=8), rank=0, world=2))  # type: ignore[arg-type]


def test_a_blocks_beyond_the_last_whole_step_are_left() -> None:
    blocks = Blocks([block([0, 1]), block([6, 7]), block([12, 13])])
    batches = list(iter_micro_batches(blocks, feed(), rank=0, world=3))  # type: ignore[arg-type]
    assert [batch.positions for batch in batches] == [[0, 1], [6, 7]]


def test_a_window_is_read_from_a_position_in_its_middle(rendered: Callable[..., Manifest]) -> None:
    manifest = rendered()
    order = feed(manifest_uri=manifest.folder, window_shards=3).order()
    window = order.window(1)
    first = window.start + 5
    span = (first, window.start + window.count - 2)
    numbers = {"id": np.array([0])}
    tables = list(_read_window(numbers, manifest=manifest, order=order, first=1, span=span, rows=4))
    found = pa.concat_tables(tables)
    assert found["position"].to_pylist() == list(range(*span))
    assert [len(table) for table in tables[:-1]] == [4] * (len(tables) - 1)
    keys = [f"{shard * 8 + index:09d}" for shard, index in order.samples(window)[5:-2]]
    assert [key[:9] for key in found["key"].to_pylist()] == keys


def test_nothing_left_to_deliver_is_said(rendered: Callable[..., Manifest]) -> None:
    folder = rendered().folder
    with pytest.raises(ValueError, match="fewer than micro_batch=2 samples are left from position 60 of 60"):
        feed(manifest_uri=folder, samples=None, start=60).dataset()
    with pytest.raises(FileNotFoundError, match="qmop prepare"):
        feed(manifest_uri="/nowhere").dataset()
