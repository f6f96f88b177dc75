"""One way to bring pictures to a trainer, in a process of its own: `python -m tests.bench.corpus_ways WAY FOLDER`.

Prints one line of JSON. Cost is the user and system time of every process of the way, ended ones included, between two
marks in one stream of pictures: at the first everything has started, and at both as much has been read ahead.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import ray
import torch
import webdataset
from ray._private.internal_api import memory_summary
from transformers import CLIPImageProcessorPil

from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from pipelines.corpus.feed import CorpusFeed
from pipelines.corpus.manifest import Manifest, load_manifest
from pipelines.corpus.micro_batches import iter_micro_batches
from pipelines.corpus.reader import read_shard
from pipelines.training.batches import ahead
from pipelines.training.memory import settle
from pipelines.training.pictures import Preparer

SIDE, BATCH, THREADS, CORES = 336, 32, 2, 2
PASSES, WARM, TURN, TURNS = 4, 512, 1024, 6
WORKER, READING = "training worker", ("reading tasks", "loader processes")
_SETTLE_S = 0.3
RESUMED_AT = (0, 640, 0, 1344, 0, 800, 0, 1760)
Costs = dict[str, float]


def preparer(threads: int) -> Preparer:
    """Decode, resize to 336, crop, normalise, as LLaVA-1.5 has it."""
    return Preparer(CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE), threads)


def costs(root: int) -> Costs:
    """CPU seconds so far of a process and all below it, by role."""
    found: Costs = defaultdict(float)
    began = time.thread_time()
    top = psutil.Process(root)
    for process in [top, *top.children(recursive=True)]:
        try:
            spent, role = process.cpu_times(), _role(process, root)
        except psutil.NoSuchProcess:
            continue
        found[role] += spent.user + spent.system + spent.children_user + spent.children_system
    found[WORKER] -= _looked(time.thread_time() - began)
    return found


_looking = [0.0]


def _looked(seconds: float) -> float:
    """All time that this process has spent in `costs`."""
    _looking[0] += seconds
    return _looking[0]


def _role(process: psutil.Process, root: int) -> str:
    title = " ".join(process.cmdline())
    if process.pid == os.getpid():
        return WORKER
    if title.startswith(("ray::IDLE", "ray::Map", "ray::Read")):
        return "reading tasks"
    if "SplitCoordinator" in title:
        return "control loop"
    return "driver" if process.pid == root else "daemons" if "ray" in title else "loader processes"


def measured(batches: Iterator[torch.Tensor], root: int, manifest: Manifest) -> dict[str, Any]:
    """CPU milliseconds per picture of a way, by role, and of a bare loop that takes turns with it every few seconds.

    What other processes read ahead while this one is in the bare loop counts for the way; looking at the clocks counts
    for nothing.
    """
    stored = [one for number in range(4) for one in read_shard(manifest.uri(number), manifest.shards[number])]
    decode, loop, me = preparer(THREADS), [image for one in stored for image in one.images], psutil.Process()
    spent: Costs = defaultdict(float)
    bare, wall, taken = 0.0, 0.0, 0
    _take(batches, WARM)
    after = costs(root)
    for _ in range(TURNS):
        before, began = costs(root), time.monotonic()
        for role in READING:
            spent[role] += before[role] - after[role]
        taken += _take(batches, TURN)
        wall += time.monotonic() - began
        time.sleep(_SETTLE_S)  # what this process has begun to prepare ahead must end before the loop
        after = costs(root)
        for role in after:
            spent[role] += after[role] - before[role]
        began_cpu = sum(me.cpu_times()[:2])
        for start in range(0, len(loop), BATCH):
            decode(loop[start : start + BATCH])
        bare += sum(me.cpu_times()[:2]) - began_cpu
    by_role = {role: seconds / taken * 1e3 for role, seconds in spent.items()}
    own = {"ms": sum(by_role.values()), "by_role": by_role, "wall_ms": wall / taken * 1e3}
    return own | {"bare_ms": bare / (TURNS * len(loop)) * 1e3}


def _take(batches: Iterator[torch.Tensor], pictures: int) -> int:
    taken = 0
    while taken < pictures:
        taken += len(next(batches))
    return taken


def loader(manifest: Manifest) -> dict[str, Any]:
    """`webdataset` in the processes of torch's `DataLoader`."""
    prepare, urls = preparer(0), [manifest.uri(number) for number in range(len(manifest.shards))]

    def prepared(sample: dict[str, Any]) -> tuple[Any, str, Any]:
        return prepare([sample["jpg"]])[0], sample["__key__"], json.loads(sample["json"])

    def together(samples: list[Any]) -> tuple[Any, list[str], list[Any]]:
        pixels, keys, records = zip(*samples, strict=True)
        return torch.stack(pixels), list(keys), list(records)

    samples = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=1).shuffle(512).map(prepared).repeat(PASSES)
    loaded = webdataset.WebLoader(samples.batched(BATCH, together), batch_size=None, num_workers=CORES)
    return measured((pixels for pixels, _, _ in loaded), os.getpid(), manifest)


class Trainer:
    """A training worker without a model."""

    def __init__(self) -> None:
        torch.set_num_threads(THREADS)
        self.prepare = preparer(THREADS)
        settle()

    def measure(self, split: Any, feed: CorpusFeed, root: int, manifest: Manifest) -> dict[str, Any]:
        """Take turns with the bare loop."""
        return measured(ahead(self._prepared(split, feed)), root, manifest)

    def once(self, split: Any, feed: CorpusFeed) -> int:
        """Take everything; the number of pictures."""
        return sum(len(pixels) for pixels in ahead(self._prepared(split, feed)))

    def first(self, split: Any, feed: CorpusFeed) -> float:
        """The time at which the first micro-batch is there."""
        batches = self._prepared(split, feed)
        assert len(next(batches)) == BATCH
        return time.time()

    def _prepared(self, split: Any, feed: CorpusFeed) -> Iterator[torch.Tensor]:
        for micro in iter_micro_batches(split, feed, rank=0, world=1):
            assert micro is not None
            yield self.prepare([image for images in micro.images for image in images])


@contextmanager
def trainer() -> Iterator[Any]:
    """A training worker in a small cluster."""
    with ray_session(RaySettings(num_cpus=4, object_store_mb=300), Progress(stream=io.StringIO())):
        yield ray.remote(num_cpus=1)(Trainer).remote()


def ours(manifest: Manifest) -> dict[str, Any]:
    """Ray Data into a training worker."""
    feed = CorpusFeed(corpora=manifest.folder, seed=1, micro_batch=BATCH, samples=PASSES * manifest.written)
    with trainer() as worker:
        return ray.get(worker.measure.remote(feed.splits(1)[0], feed, os.getpid(), manifest))


def once(manifest: Manifest) -> dict[str, Any]:
    """One epoch, and the bytes that Ray wrote to disk because its object store was full."""
    feed = CorpusFeed(corpora=manifest.folder, seed=1, micro_batch=BATCH)
    with trainer() as worker:
        taken = ray.get(worker.once.remote(feed.splits(1)[0], feed))
        spilled = re.search(r"Spilled (\d+) MiB", memory_summary(stats_only=True))
    assert taken == feed.stop()
    return {"spilled": int(spilled[1]) * 2**20 if spilled else 0}


def starts(manifest: Manifest) -> dict[str, Any]:
    """Seconds to the first micro-batch, from the beginning of the corpus and from places inside, in turns."""
    feed = CorpusFeed(corpora=manifest.folder, seed=1, micro_batch=BATCH, samples=manifest.written)
    taken = []
    with trainer() as worker:
        for position in (0, *RESUMED_AT):
            began = time.time()
            taken.append(ray.get(worker.first.remote(feed.at(position).splits(1)[0], feed.at(position))) - began)
    fresh = [seconds for position, seconds in zip(RESUMED_AT, taken[1:], strict=True) if not position]
    return {"fresh": fresh, "resumed": [s for p, s in zip(RESUMED_AT, taken[1:], strict=True) if p]}


WAYS = {"loader": loader, "ours": ours, "once": once, "starts": starts}

if __name__ == "__main__":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    torch.set_num_threads(1)
    print(json.dumps(WAYS[sys.argv[1]](load_manifest(sys.argv[2]))))  # noqa: T201 - the parent reads it
