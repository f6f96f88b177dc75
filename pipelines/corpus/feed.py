"""Shards to the trainer's doorstep through Ray Data, in one exact order for any number of workers.

An optimiser step is a fixed number of micro-batch *slots*, whatever the number of workers: slot k of a step holds the
next `micro_batch` positions and goes to rank `k mod world`; where the slots do not divide evenly, the last ranks get a
void instead. Ray Data gives that with one task per span, preserved order, and a streaming split that neither equalises
nor looks at locality: a row is one rank's *share* of a stretch of positions, many micro-batches long, and ranks take
turns. So a sample is copied into the object store once, and Ray has little to control; `micro_batches` is the other
end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

from cluster.bounds import require_at_least
from cluster.storage import absolute
from pipelines.corpus.blend import Blend, Places
from pipelines.corpus.reader import OpenShard, open_shard

SCHEMA = pa.schema(
    [
        ("position", pa.list_(pa.int64())),
        ("key", pa.list_(pa.string())),
        ("images", pa.list_(pa.list_(pa.large_binary()))),
        ("sample", pa.list_(pa.large_binary())),
    ]
)
"""One row is one rank's share of a stretch: lists of equal length, one entry per sample."""
READING_CPUS = 1.0
"""Logical CPUs that must stay free beside the trainer's own; without any, Ray Data would wait for ever in silence."""
_SHARE_BYTES = 16 * 1024 * 1024
_REST_S = 0.1


@dataclass(frozen=True, kw_only=True)
class CorpusFeed:
    """Corpora in their order, from one position to another. Small and picklable; opens nothing until it is used.

    Samples beyond the last whole step of `micro_batch * slots` are not delivered, so that every worker takes equally
    many steps and steps do not depend on the number of workers; `steps` says how many that are.

    Args:
        corpora: corpus folder or manifest file; or several with their weights.
        seed: seed of the order.
        micro_batch: samples that one worker computes at once.
        slots: micro-batches of one optimiser step, over all workers.
        samples: position after the last sample, over as many epochs as needed; one epoch when None.
        start: position of the first sample, the beginning of a step; a resumed run puts its checkpoint's position here.
        window_shards: shards that are shuffled together; a task holds as many in memory.
        windows_ahead: spans that are read at the same time.
        read_cpus: logical CPUs that reading one span asks for.
    """

    corpora: str | Mapping[str, float]
    seed: int
    micro_batch: int
    slots: int = 1
    samples: int | None = None
    start: int = 0
    window_shards: int = 4
    windows_ahead: int = 2
    read_cpus: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a ValueError that names the field."""
        named = {self.corpora: 1.0} if isinstance(self.corpora, str) else self.corpora
        object.__setattr__(self, "corpora", {absolute(uri): float(weight) for uri, weight in named.items()})
        require_at_least(self, 1, "micro_batch", "slots", "window_shards", "windows_ahead")
        if self.start < 0 or (self.samples is not None and self.samples < self.start):
            raise ValueError(f"start is {self.start}, it must lie between 0 and samples ({self.samples})")

    @property
    def step(self) -> int:
        """Samples of one optimiser step."""
        return self.micro_batch * self.slots

    def at(self, position: int) -> CorpusFeed:
        """The same feed from another position on."""
        return replace(self, start=position)

    def blend(self) -> Blend:
        """The order that positions refer to."""
        assert not isinstance(self.corpora, str)
        return Blend.load(self.corpora, self.seed, self.window_shards)

    def stop(self) -> int:
        """The position after the last sample that is delivered."""
        asked = self.blend().epoch if self.samples is None else self.samples
        return self.start + (asked - self.start) // self.step * self.step

    def steps(self) -> int:
        """Optimiser steps from `start` to the end."""
        return (self.stop() - self.start) // self.step

    def rounds(self, world: int) -> int:
        """Micro-batches, voids included, of each of `world` workers in one step."""
        return -(-self.slots // world)

    def dataset(self, world: int = 1) -> ray.data.Dataset:
        """A lazy dataset whose blocks are shares with the columns of `SCHEMA`: rank 0's, rank 1's and so on, again.

        Raises:
            FileNotFoundError: if a corpus has no manifest.
            ValueError: if nothing is left to deliver, or a manifest is damaged.
        """
        blend, stop = self.blend(), self.stop()
        if stop == self.start:
            raise ValueError(
                f"samples: fewer than {self.step} samples (slots={self.slots} x micro_batch={self.micro_batch}) are "
                f"left from position {self.start}, ask for more samples or use smaller steps"
            )
        first, last = blend.span_at(self.start), blend.span_at(stop - 1)
        read = partial(_read_span, blend=blend, feed=self, first=first, stop=stop, world=world)
        count = last - first + 1
        shares = ray.data.range(count, override_num_blocks=count).map_batches(
            read,
            batch_size=None,
            batch_format="numpy",
            num_cpus=self.read_cpus,
            compute=ray.data.TaskPoolStrategy(min(self.windows_ahead, count)),
        )
        shares.context.target_max_block_size = 1  # every row a block of its own, as it is never cut
        shares.context.execution_options.preserve_order = True
        shares.context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
            object_store_memory=2 * _SHARE_BYTES * (2 * world + self.windows_ahead)
        )
        shares.context.enable_progress_bars = False
        shares.context.custom_execution_callback_classes.append(Unhurried)
        shares.set_name("qmop_feed")  # as the dashboard shows it
        return shares

    def splits(self, world: int) -> list[ray.data.DataIterator]:
        """The dataset for as many workers, one iterator each; what they deliver goes through `iter_micro_batches`.

        The iterators live as long as the process that made them.
        """
        return self.dataset(world).streaming_split(world, equal=False, locality_hints=None)


class Unhurried(ExecutionCallback):
    """Lets Ray Data's control loop rest between two looks.

    Where trainers are slower than readers, as they should be, the loop finds finished blocks that it must not take yet,
    at once and again and again: it then costs a third of a core for nothing.
    """

    def on_execution_step(self, executor: Any) -> None:  # noqa: ARG002 - the interface is Ray's
        """Rest."""
        time.sleep(_REST_S)


def _read_span(
    batch: dict[str, np.ndarray], *, blend: Blend, feed: CorpusFeed, first: int, stop: int, world: int
) -> Iterator[pa.Table]:
    """The samples of one span, or of the part of it that is asked for: share by share, rank by rank."""
    stretch = _stretch(blend, feed, world)
    for number in batch["id"]:
        low, high = blend.span(first + int(number))
        start, end = max(feed.start, low), min(stop, high)
        places = blend.places(start, end)
        shards = {
            (corpus, shard): open_shard(blend.manifests[corpus].uri(shard), blend.manifests[corpus].shards[shard])
            for corpus, shard in places.shards()
        }
        for begin in range(start, end, stretch):
            positions = np.arange(begin, min(end, begin + stretch))
            ranks = (positions - feed.start) % feed.step // feed.micro_batch % world
            for rank in range(world):
                yield _share(positions[ranks == rank], start, places, shards)


def _stretch(blend: Blend, feed: CorpusFeed, world: int) -> int:
    """Positions of a stretch, so that a share is a few micro-batches and some megabytes."""
    held = [sum(shard.filesize for shard in manifest.shards) / manifest.written for manifest in blend.manifests]
    sample = sum(weight * size for weight, size in zip(blend.weights, held, strict=True)) / sum(blend.weights)
    return world * feed.micro_batch * max(1, int(_SHARE_BYTES / (feed.micro_batch * sample)))


def _share(positions: np.ndarray, start: int, places: Places, shards: dict[tuple[int, int], OpenShard]) -> pa.Table:
    inside = positions - start
    stored = [
        shards[corpus, shard][index]
        for corpus, shard, index in zip(
            places.corpus[inside].tolist(), places.shard[inside].tolist(), places.index[inside].tolist(), strict=True
        )
    ]
    columns = [
        [positions.tolist()],
        [[sample.key for sample in stored]],
        [[sample.images for sample in stored]],
        [[sample.record for sample in stored]],
    ]
    return pa.table(columns, schema=SCHEMA)
