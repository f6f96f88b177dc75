"""Shards to the trainer's doorstep through Ray Data, in one exact order for any number of workers.

Micro-batch `k` holds positions `start + k * micro_batch` onwards and goes to rank `k mod world`. Ray Data gives that
with one task per shuffle window, preserved order, strict repartitioning into blocks of one micro-batch and a streaming
split that neither equalises nor looks at locality; each consumer proves the positions that reach it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import ray.train

from cluster.storage import absolute
from pipelines.corpus.manifest import Manifest, load_manifest
from pipelines.corpus.order import Order, Window
from pipelines.corpus.reader import OpenShard, open_shard

SCHEMA = pa.schema([("position", pa.int64()), ("key", pa.string()), ("image", pa.binary()), ("sample", pa.binary())])
READING_CPUS = 1.0
"""Logical CPUs that must stay free beside the trainer's own; without any, Ray Data would wait for ever in silence."""
_BLOCK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class MicroBatch:
    """Samples that one worker computes at once; four lists of equal length.

    Attributes:
        positions: global positions, consecutive.
        keys: keys as the shards have them.
        images: encoded images, None for text-only samples.
        samples: records with `id`, `messages`, `image` and `origin`.
    """

    positions: list[int]
    keys: list[str]
    images: list[bytes | None]
    samples: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class CorpusFeed:
    """A corpus in its order, from one position to another. Small and picklable; opens nothing until it is used.

    Samples beyond the last whole step of `micro_batch * world` are not delivered, so that every worker sees equally
    many micro-batches; `steps` says how many that are.

    Args:
        manifest_uri: corpus folder or manifest file.
        seed: seed of the order.
        micro_batch: samples that one worker computes at once.
        samples: position after the last sample, over as many epochs as needed; one epoch when None.
        start: position of the first sample; a resumed run puts its committed position here.
        window_shards: shards that are shuffled together; a task holds as many in memory.
        windows_ahead: windows that are read at the same time.
        read_cpus: logical CPUs that reading one window asks for.
    """

    manifest_uri: str
    seed: int
    micro_batch: int
    samples: int | None = None
    start: int = 0
    window_shards: int = 4
    windows_ahead: int = 2
    read_cpus: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a ValueError that names the field."""
        object.__setattr__(self, "manifest_uri", absolute(self.manifest_uri))
        for name in ("micro_batch", "window_shards", "windows_ahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.start < 0 or (self.samples is not None and self.samples < self.start):
            raise ValueError(f"start is {self.start}, it must lie between 0 and samples ({self.samples})")

    def at(self, position: int) -> CorpusFeed:
        """The same feed from another position on."""
        return replace(self, start=position)

    def stop(self) -> int:
        """The position after the last sample that is asked for."""
        return load_manifest(self.manifest_uri).written if self.samples is None else self.samples

    def steps(self, world: int) -> int:
        """Micro-batches that each of `world` workers receives."""
        return (self.stop() - self.start) // (self.micro_batch * world)

    def order(self) -> Order:
        """The order that positions refer to."""
        return Order(load_manifest(self.manifest_uri).sizes, self.seed, self.window_shards)

    def dataset(self) -> ray.data.Dataset:
        """A lazy dataset whose blocks are micro-batches with the columns of `SCHEMA`, in order.

        Raises:
            FileNotFoundError: if the corpus has no manifest.
            ValueError: if nothing is left to deliver, or the manifest is damaged.
        """
        manifest = load_manifest(self.manifest_uri)
        order = Order(manifest.sizes, self.seed, self.window_shards)
        stop = self.start + (self.stop() - self.start) // self.micro_batch * self.micro_batch
        if stop == self.start:
            raise ValueError(
                f"samples: fewer than micro_batch={self.micro_batch} samples are left from position {self.start} of "
                f"{self.stop()}, ask for more samples or use a smaller micro-batch"
            )
        first, last = order.window_at(self.start).number, order.window_at(stop - 1).number
        read = partial(_read_window, manifest=manifest, order=order, first=first, span=(self.start, stop))
        count = last - first + 1
        windows = ray.data.range(count, override_num_blocks=count)
        rows = windows.map_batches(
            partial(read, rows=self.micro_batch),
            batch_size=None,
            batch_format="numpy",
            num_cpus=self.read_cpus,
            compute=ray.data.TaskPoolStrategy(min(self.windows_ahead, count)),
        )
        batches = rows.repartition(target_num_rows_per_block=self.micro_batch, strict=True)
        batches.context.target_max_block_size = _BLOCK_BYTES
        batches.context.execution_options.preserve_order = True
        batches.context.enable_progress_bars = False
        return batches


def _read_window(
    batch: dict[str, np.ndarray], *, manifest: Manifest, order: Order, first: int, span: tuple[int, int], rows: int
) -> Iterator[pa.Table]:
    """The samples of one window, or of the part of it inside `span`, as tables of at most `rows` rows."""
    for number in batch["id"]:
        window = order.window(first + int(number))
        shards = {shard: open_shard(manifest.uri(shard), manifest.shards[shard]) for shard in window.shards}
        places = order.samples(window)
        start, stop = max(span[0], window.start), min(span[1], window.start + window.count)
        for low in range(start, stop, rows):
            yield _table(window, places, shards, range(low, min(low + rows, stop)))


def _table(window: Window, places: list[tuple[int, int]], shards: dict[int, OpenShard], positions: range) -> pa.Table:
    chosen = [places[position - window.start] for position in positions]
    stored = [shards[shard][index] for shard, index in chosen]
    columns = [
        list(positions),
        [sample.key for sample in stored],
        [sample.image for sample in stored],
        [sample.record for sample in stored],
    ]
    return pa.table(columns, schema=SCHEMA)


class ExactSplit(ray.train.DataConfig):
    """Hands micro-batch `k` to rank `k mod world`; pass it as `dataset_config` to the trainer."""

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: list[Any] | None,  # noqa: ARG002 - the interface is Ray's
        worker_node_ids: list[str] | None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> list[dict[str, ray.data.DataIterator]]:
        """One iterator per dataset for every worker."""
        output: list[dict[str, ray.data.DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            ordered = dataset.copy(dataset)
            ordered.context.execution_options = deepcopy(dataset.context.execution_options)
            ordered.context.execution_options.preserve_order = True
            splits = ordered.streaming_split(world_size, equal=False, locality_hints=None)
            for rank, split in enumerate(splits):
                output[rank][name] = split
        return output


def iter_micro_batches(
    shard: ray.data.DataIterator, feed: CorpusFeed, *, rank: int | None = None, world: int | None = None
) -> Iterator[MicroBatch]:
    """The micro-batches of one worker, exactly `feed.steps(world)` of them, each proved to be the right one.

    Args:
        shard: what `ray.train.get_dataset_shard` returned.
        feed: the feed that the dataset was made from.
        rank: this worker's rank; Ray Train's when None.
        world: number of workers; Ray Train's when None.
    """
    context = ray.train.get_context() if rank is None or world is None else None
    rank = context.get_world_rank() if rank is None and context else rank
    world = context.get_world_size() if world is None and context else world
    assert rank is not None
    assert world is not None
    steps = feed.steps(world)
    batches = iter(shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2))
    for step in range(steps):
        table = next(batches, None)
        assert table is not None, f"the feed ended after {step} of {steps} micro-batches"
        low = feed.start + (step * world + rank) * feed.micro_batch
        yield _unpack(table, list(range(low, low + feed.micro_batch)))


def _unpack(table: pa.Table, expected: list[int]) -> MicroBatch:
    positions = table["position"].to_pylist()
    assert positions == expected, f"positions {positions[:3]}... arrived where {expected[:3]}... were due"
    return MicroBatch(
        positions=positions,
        keys=table["key"].to_pylist(),
        images=table["image"].to_pylist(),
        samples=[json.loads(record) for record in table["sample"].to_pylist()],
    )
