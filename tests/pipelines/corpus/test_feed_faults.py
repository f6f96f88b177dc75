"""An object store that breaks off, answers with errors, comes back short or lies: every sample arrives exactly once."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator

import pytest

from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from pipelines.corpus.feed import CorpusFeed
from pipelines.corpus.manifest import Manifest
from pipelines.corpus.prepare import prepare
from pipelines.corpus.reader import read_shard
from pipelines.corpus.recipe import PrepareRecipe
from tests.fixtures.faulty_s3 import KINDS, Faults, faulty_proxy
from tests.fixtures.s3_server import BUCKET

pytestmark = pytest.mark.pipeline
SAMPLES = 60


def bucket_corpus() -> Manifest:
    """Sixty samples in twenty shards, in the bucket."""
    recipe = PrepareRecipe(source="rendered", output=f"s3://{BUCKET}/corpus", count=SAMPLES, samples_per_shard=3)
    return prepare(recipe, Progress(stream=io.StringIO()))


def delivered_through_faults(corpus: Manifest, faults: Faults, count: int, seed: int) -> None:
    """Read an epoch through Ray while so many faults happen, and prove that nothing is missing and nothing twice."""
    feed = CorpusFeed(corpora=corpus.folder, seed=1, micro_batch=5, window_shards=2)
    due = {number: [one.key for one in read_shard(corpus.uri(number), s)] for number, s in enumerate(corpus.shards)}
    places = feed.blend().places(0, SAMPLES)
    order = [due[shard][index] for shard, index in zip(places.shard.tolist(), places.index.tolist(), strict=True)]
    with ray_session(RaySettings(num_cpus=4, object_store_mb=200), Progress(stream=io.StringIO())):
        faults.arm(count, seed)
        shares = feed.dataset().take_all()
    assert len(faults.done) == count
    assert [position for share in shares for position in share["position"]] == list(range(SAMPLES))
    assert [key for share in shares for key in share["key"]] == order
    assert set(Counter(order).values()) == {1}


@pytest.fixture
def faults(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """The faults of the store that the environment leads to."""
    with faulty_proxy(s3_server) as (url, ours):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield ours


def test_a_shard_survives_every_kind_of_fault(faults: Faults) -> None:
    corpus = bucket_corpus()
    whole = [list(read_shard(corpus.uri(number), shard)) for number, shard in enumerate(corpus.shards)]
    for seed, kind in enumerate(KINDS):
        faults.arm(4, seed, (kind,))
        assert [list(read_shard(corpus.uri(number), shard)) for number, shard in enumerate(corpus.shards)] == whole
        assert [what for what, _ in faults.done] == [kind] * 4


def test_every_sample_arrives_once_through_five_faults(faults: Faults) -> None:
    delivered_through_faults(bucket_corpus(), faults, 5, seed=4)
