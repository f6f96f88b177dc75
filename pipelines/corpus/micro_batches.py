"""The trainer's doorstep: what a worker takes from the feed, each micro-batch proved to be the right one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.train
from ray.train.collective import broadcast_from_rank_zero

from pipelines.corpus.feed import SCHEMA, CorpusFeed
from pipelines.corpus.meters import Meters


@dataclass(frozen=True)
class MicroBatch:
    """Samples that one worker computes at once; four lists of equal length.

    Attributes:
        positions: global positions, consecutive.
        keys: keys as the shards have them.
        images: encoded images of each sample in order; none for text-only samples.
        samples: records with `id`, `messages` and `image`.
    """

    positions: list[int]
    keys: list[str]
    images: list[list[bytes]]
    samples: list[dict[str, Any]]

    @property
    def image_bytes(self) -> int:
        """Bytes of all images, encoded."""
        return sum(len(image) for images in self.images for image in images)


def own_split(feed: CorpusFeed) -> ray.data.DataIterator:
    """This worker's part of a feed, inside a worker of Ray Train; a collective call.

    The worker of rank 0 starts the dataset and shares it out. So the position is the one that its checkpoint names,
    with nothing beside the checkpoint that could disagree, and the data ends with the workers that read it.
    """
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    shared = broadcast_from_rank_zero([ray.put(feed.splits(world))] if rank == 0 else [])
    return ray.get(shared[0])[rank]


def iter_micro_batches(
    split: ray.data.DataIterator, feed: CorpusFeed, *, rank: int, world: int
) -> Iterator[MicroBatch | None]:
    """What one worker computes: `feed.rounds(world)` micro-batches or voids (None) for each of `feed.steps()` steps.

    Each is proved to be the right one.

    Args:
        split: this worker's iterator.
        feed: the feed that the split was made from.
        rank: this worker's rank.
        world: number of workers.
    """
    steps, size, meters = feed.steps(), feed.micro_batch, Meters()
    shares = iter(split.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2))
    first = next(shares, None)  # Ray waits for every rank to begin, also for one without a slot in any step
    samples = _samples(chain([] if first is None else [first], shares))
    for step in range(steps):
        for slot in range(rank, feed.rounds(world) * world, world):
            if slot >= feed.slots:
                yield None
                continue
            began = time.monotonic()
            taken = list(islice(samples, size))
            waited = time.monotonic() - began
            assert taken, f"the feed ended after {step} of {steps} steps"
            low = feed.start + step * feed.step + slot * size
            batch = _proved(taken, list(range(low, low + size)))
            meters.count(samples=size, image_bytes=batch.image_bytes, position=batch.positions[-1], waited_s=waited)
            yield batch


def _samples(shares: Iterable[pa.Table]) -> Iterator[tuple[int, str, list[bytes], bytes]]:
    """What shares hold, sample by sample; bytes are copied out of the object store as they are asked for."""
    for share in shares:
        positions, keys, images, records = (share[name].combine_chunks().flatten() for name in SCHEMA.names)
        for place, (position, key) in enumerate(zip(positions.to_pylist(), keys.to_pylist(), strict=True)):
            yield position, key, images[place].as_py(), records[place].as_py()


def _proved(samples: list[tuple[int, str, list[bytes], bytes]], expected: list[int]) -> MicroBatch:
    positions, keys, images, records = (list(column) for column in zip(*samples, strict=True))
    assert positions == expected, f"positions {positions[:3]}... arrived where {expected[:3]}... were due"
    return MicroBatch(positions=positions, keys=keys, images=images, samples=[json.loads(record) for record in records])
