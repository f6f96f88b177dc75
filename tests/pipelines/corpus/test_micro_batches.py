"""What a worker takes from the feed: its own positions, proved, and voids where it has no slot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from pipelines.corpus.feed import SCHEMA
from pipelines.corpus.micro_batches import iter_micro_batches
from tests.pipelines.corpus.test_feed import feed


class Blocks:
    """Stands for Ray's iterator: hands out the blocks that it was given."""

    def __init__(self, blocks: list[pa.Table]) -> None:
        self.blocks = blocks

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        return iter(self.blocks)


def share(positions: list[int]) -> pa.Table:
    count = len(positions)
    return pa.table([[positions], [["k"] * count], [[[]] * count], [[b"{}"] * count]], schema=SCHEMA)


def test_each_rank_proves_its_positions() -> None:
    second = Blocks([share([4 * step + 2, 4 * step + 3]) for step in range(4)])
    batches = list(iter_micro_batches(second, feed(slots=2), rank=1, world=2))  # type: ignore[arg-type]
    assert [batch and batch.positions for batch in batches] == [[2, 3], [6, 7], [10, 11], [14, 15]]


@pytest.mark.parametrize("cuts", [[8], [3, 5], [1, 0, 6, 1], [0, 8, 0]])
def test_shares_may_end_anywhere(cuts: list[int]) -> None:
    mine = iter([2, 3, 6, 7, 10, 11, 14, 15])
    shares = [share([next(mine) for _ in range(count)]) for count in cuts]
    batches = list(iter_micro_batches(Blocks(shares), feed(slots=2), rank=1, world=2))  # type: ignore[arg-type]
    assert [batch and batch.positions for batch in batches] == [[2, 3], [6, 7], [10, 11], [14, 15]]


def test_a_rank_without_a_slot_gets_a_void() -> None:
    third = Blocks([share([4, 5]), share([14, 15])])
    batches = list(iter_micro_batches(third, feed(slots=5, samples=20), rank=2, world=3))  # type: ignore[arg-type]
    assert [batch and batch.positions for batch in batches] == [[4, 5], None, [14, 15], None]


def test_a_rank_without_any_slot_begins_like_the_others() -> None:
    begun = []

    def shares() -> Iterator[pa.Table]:
        begun.append(True)
        yield share([])

    stands_for_ray = Blocks([])
    stands_for_ray.iter_batches = lambda **_: shares()  # type: ignore[method-assign]
    batches = list(iter_micro_batches(stands_for_ray, feed(), rank=3, world=4))  # type: ignore[arg-type]
    assert batches == [None] * 8
    assert begun


@pytest.mark.parametrize(
    "positions", [[[2, 3], [0, 1]], [[0, 1], [2, 3]], [[0, 1], [4]], [[0, 1]], [[1, 0], [4, 5]], [[0, 1, 2], [4, 5]]]
)
def test_a_wrong_position_stops_the_rank(positions: list[list[int]]) -> None:
    blocks = Blocks([share(part) for part in positions])
    with pytest.raises(AssertionError, match=r"arrived where|the feed ended after 1 of 2"):
        list(iter_micro_batches(blocks, feed(samples=8, slots=2), rank=0, world=2))  # type: ignore[arg-type]


def test_what_is_beyond_the_last_whole_step_is_left() -> None:
    blocks = Blocks([share([0, 1, 6, 7]), share([12, 13])])
    batches = list(iter_micro_batches(blocks, feed(slots=3), rank=0, world=3))  # type: ignore[arg-type]
    assert [batch and batch.positions for batch in batches] == [[0, 1], [6, 7]]
