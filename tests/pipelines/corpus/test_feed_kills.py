"""Kill -9 of a training worker: the epoch goes on with other workers, and no sample is lost or seen twice."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from pipelines.corpus.feed import CorpusFeed
from pipelines.corpus.manifest import Manifest
from tests.pipelines.corpus.killing import Run, draw_kill

pytestmark = pytest.mark.pipeline


def test_an_epoch_survives_the_kill_of_a_worker(rendered: Callable[..., Manifest], tmp_path: Path) -> None:
    manifest = rendered(count=96, samples_per_shard=8)
    feed = CorpusFeed(corpora=manifest.folder, seed=3, micro_batch=2, slots=4, window_shards=3)
    killed = Run(feed=feed, folder=tmp_path)
    kill = draw_kill(random.Random(7), 2, range(4, 8))
    with ray_session(RaySettings(num_cpus=5, object_store_mb=200), Progress(stream=io.StringIO())):
        assert not killed.start(2, kill)
        assert killed.start(1)
    proof = killed.audit()
    assert (proof.steps, proof.samples, proof.epochs) == (12, 96, 1.0)
    assert proof.proved_shards == 12
    assert proof.attempts == 2
    assert proof.worlds == (1, 2)
    places = feed.blend().places(0, 96)
    due = [f"{number:09d}" for number in (places.shard * 8 + places.index).tolist()]
    steps = killed.global_batches()
    assert list(steps) == list(range(12))
    rows = [row for step in range(12) for row in steps[step]]
    assert [(position, key[:9]) for position, key in rows] == list(enumerate(due))
