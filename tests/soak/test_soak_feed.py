"""Long repetition over the feed: a store full of faults, and workers that are killed in the middle of their epochs.

Seeded and resumable: finished seeds are listed in runs/soak/feed-*.txt and skipped; delete a file to start over.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from pipelines.corpus.feed import CorpusFeed
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
from tests.fixtures.faulty_s3 import faulty_proxy
from tests.pipelines.corpus.killing import Run, draw_kill
from tests.pipelines.corpus.test_feed_faults import bucket_corpus, delivered_through_faults

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

FAULT_SEEDS, FAULTS_EACH = range(20_000, 20_010), 10
KILL_SEEDS = range(30_000, 30_020)
FOLDER = Path("runs/soak")


def finished(kind: str, seed: int) -> bool:
    """Whether an earlier run ended with this seed."""
    record = FOLDER / f"feed-{kind}.txt"
    return record.exists() and any(line.split()[0] == str(seed) for line in record.read_text().splitlines())


def finish(kind: str, seed: int, what: str) -> None:
    """Write down that this seed is through."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"feed-{kind}.txt").open("a") as record:
        record.write(f"{seed} {what}\n")


@pytest.mark.parametrize("seed", FAULT_SEEDS)
def test_every_sample_arrives_once_whatever_the_store_does(
    s3_server: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    if finished("faults", seed):
        pytest.skip("finished in an earlier run")
    with faulty_proxy(s3_server) as (url, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        delivered_through_faults(bucket_corpus(), faults, FAULTS_EACH, seed)
    finish("faults", seed, " ".join(f"{kind}@{offset}" for kind, offset in faults.done))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """An epoch of twelve steps that nobody disturbed, on one worker; its cluster is there for all kills."""
    folder = tmp_path_factory.mktemp("alone")
    recipe = PrepareRecipe(source="rendered", output=str(folder / "corpus"), count=96, samples_per_shard=8)
    manifest = prepare(recipe, Progress(stream=io.StringIO()))
    feed = CorpusFeed(corpora=manifest.folder, seed=3, micro_batch=2, slots=4, window_shards=3)
    run = Run(feed=feed, folder=folder)
    with ray_session(RaySettings(num_cpus=6, object_store_mb=200), Progress(stream=io.StringIO())):
        assert run.start(1)
        yield run


@pytest.mark.parametrize("seed", KILL_SEEDS)
def test_an_epoch_survives_a_kill_anywhere(alone: Run, tmp_path: Path, seed: int) -> None:
    if finished("kills", seed):
        pytest.skip("finished in an earlier run")
    draws = random.Random(seed)
    world, after = 1 + seed % 4, 1 + (seed + 1 + seed // 4 % 3) % 4
    kill = draw_kill(draws, world, range(12))
    run = Run(feed=alone.feed, folder=tmp_path)
    went_through = run.start(world, kill) or run.start(after)
    proof = run.audit()
    assert went_through
    assert (proof.steps, proof.samples, proof.proved_shards) == (12, 96, 12)
    assert run.global_batches() == alone.global_batches()
    finish("kills", seed, f"rank {kill.rank} of {world} in step {kill.step}, then {after}: {proof.repeated} repeated")
