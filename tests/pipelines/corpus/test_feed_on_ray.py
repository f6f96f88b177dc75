"""The whole way through Ray: shards made in parallel, read by workers of any number, in one exact order."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.processes import handlers_kept
from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from pipelines.corpus.feed import CorpusFeed
from pipelines.corpus.manifest import Manifest
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with ray_session(RaySettings(num_cpus=6, object_store_mb=200), Progress(stream=io.StringIO())):
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A hundred samples in ten shards, made by Ray tasks."""
    output = str(tmp_path_factory.mktemp("corpus") / "out")
    recipe = PrepareRecipe(source="rendered", output=output, count=100, samples_per_shard=10)
    return prepare(recipe, Progress(stream=io.StringIO()))


def delivered(feed: CorpusFeed, world: int) -> list[list[tuple[list[int], list[str]]]]:
    """What each rank received, `(positions, keys)` per micro-batch; ranks dawdle unevenly and seeded."""

    def consume(shard: Any, rank: int) -> list[tuple[list[int], list[str]]]:
        import random  # noqa: PLC0415 - runs in a worker
        import time  # noqa: PLC0415

        from pipelines.corpus.micro_batches import iter_micro_batches  # noqa: PLC0415

        draws, seen = random.Random(rank), []
        for batch in iter_micro_batches(shard, feed, rank=rank, world=world):
            time.sleep(draws.random() * 0.04)
            if batch is not None:
                seen.append((batch.positions, batch.keys))
        return seen

    worker = ray.remote(num_cpus=0.1)(consume)
    return ray.get([worker.remote(split, rank) for rank, split in enumerate(feed.splits(world))])


def expected_keys(feed: CorpusFeed, start: int, stop: int) -> list[str]:
    """The first part of each key, from the order alone: shards hold ten samples each."""
    order = feed.blend().orders[0]
    return [f"{shard * 10 + index:09d}" for shard, index in zip(*order.places(start, stop), strict=True)]


def in_order(ranks: list[list[tuple[list[int], list[str]]]]) -> list[str]:
    """Keys in the order of their global positions."""
    rows = [row for rank in ranks for positions, keys in rank for row in zip(positions, keys, strict=True)]
    rows.sort()
    assert [position for position, _ in rows] == list(range(rows[0][0], rows[0][0] + len(rows)))
    return [key[:9] for _, key in rows]


def test_a_workers_complaint_is_one_sentence(tmp_path: Path) -> None:
    recipe = PrepareRecipe(source="rendered", output=str(tmp_path / "file" / "out"), count=4)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot be used") as caught:
        prepare(recipe, Progress(stream=io.StringIO()))
    assert "\n" not in str(caught.value)


def test_parallel_and_lone_preparation_agree(corpus: Manifest, rendered: Callable[..., Manifest]) -> None:
    again = rendered(count=100, samples_per_shard=10)
    assert again.digest == corpus.digest
    assert [shard.nsamples for shard in again.shards] == [10] * 10


@pytest.mark.parametrize(
    ("world", "micro_batch", "slots"),
    [
        pytest.param(1, 8, 1, marks=pytest.mark.soak),
        pytest.param(2, 4, 4, marks=pytest.mark.soak),
        (3, 4, 4),
        pytest.param(4, 4, 4, marks=pytest.mark.soak),
        (8, 4, 4),
    ],
)
def test_every_number_of_workers_sees_the_same_steps(
    corpus: Manifest, world: int, micro_batch: int, slots: int
) -> None:
    feed = CorpusFeed(corpora=corpus.folder, seed=5, micro_batch=micro_batch, slots=slots, samples=150, window_shards=3)
    ranks = delivered(feed, world)
    busy = [sum(slot % world == rank for slot in range(slots)) for rank in range(world)]
    assert [len(rank) for rank in ranks] == [feed.steps() * count for count in busy]
    assert in_order(ranks) == expected_keys(feed, 0, feed.stop())


def test_a_run_goes_on_from_any_position_on_another_number_of_workers(corpus: Manifest) -> None:
    feed = CorpusFeed(corpora=corpus.folder, seed=5, micro_batch=4, slots=3, samples=108, window_shards=3)
    whole = in_order(delivered(feed, 1))
    assert whole[60:] == in_order(delivered(feed.at(60), 2))


def test_a_mixture_keeps_its_proportions_and_its_corpora_their_orders(
    corpus: Manifest, rendered: Callable[..., Manifest]
) -> None:
    other = rendered("other", count=30, samples_per_shard=10, seed=77)
    corpora = {corpus.folder: 3.0, other.folder: 1.0}
    feed = CorpusFeed(corpora=corpora, seed=5, micro_batch=4, slots=2, samples=160, window_shards=3)
    ranks = delivered(feed, 2)
    keys = in_order(ranks)
    assert len(keys) == 160
    places = feed.blend().places(0, 160)
    assert keys == [f"{s * 10 + i:09d}" for s, i in zip(places.shard.tolist(), places.index.tolist(), strict=True)]
    for start in range(0, 160, 4):
        assert (places.corpus[start : start + 4] == 0).sum() == 3
    first = [key for key, which in zip(keys, places.corpus, strict=True) if which == 0]
    assert len(set(first[:100])) == 100  # each corpus keeps to its own epochs


def test_an_epoch_holds_every_key_once(corpus: Manifest) -> None:
    feed = CorpusFeed(corpora=corpus.folder, seed=9, micro_batch=10, samples=200, window_shards=4)
    keys = in_order(delivered(feed, 2))
    assert len(set(keys[:100])) == len(set(keys[100:])) == 100
    assert keys[:100] != keys[100:]


def test_text_only_rows_and_photographs_arrive_unchanged(
    llava: Any, jpegs: list[bytes], tmp_path: Path, progress: Progress
) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    llava.records += [{"id": number, "conversations": turns} for number in range(6)]
    llava.save()
    manifest = prepare(llava.recipe(tmp_path / "out"), progress)
    feed = CorpusFeed(corpora=manifest.folder, seed=1, micro_batch=3, window_shards=2)
    shares = feed.dataset().take_all()
    rows = [row for share in shares for row in zip(share["images"], share["sample"], strict=True)]
    assert sorted(image for images, _ in rows for image in images) == sorted(jpegs)
    assert sum(not images for images, _ in rows) == 6
    assert all(json.loads(record)["image"] == bool(images) for images, record in rows)


def test_a_damaged_shard_stops_the_feed_with_its_name(rendered: Callable[..., Manifest]) -> None:
    manifest = rendered(count=40, samples_per_shard=10)
    Path(manifest.uri(2)).write_bytes(b"")
    feed = CorpusFeed(corpora=manifest.folder, seed=1, micro_batch=5)
    with pytest.raises(Exception, match=r"corpus-000002\.tar: its bytes differ from the manifest"):
        feed.dataset().take_all()


def test_the_stock_reader_of_ray_reads_our_shards(corpus: Manifest) -> None:
    paths = [corpus.uri(number) for number in range(len(corpus.shards))]
    rows = ray.data.read_webdataset(paths, decoder=None).take_all()
    assert len({row["__key__"] for row in rows}) == 100
    assert all(row["png"].startswith(b"\x89PNG") for row in rows)
    assert json.loads(rows[0]["json"])["messages"][0]["role"] == "user"


@pytest.mark.soak  # as the test of kills does, step by step
def test_ray_train_hands_each_worker_its_positions(corpus: Manifest, tmp_path: Path) -> None:
    feed = CorpusFeed(corpora=corpus.folder, seed=5, micro_batch=4, slots=2, samples=44, window_shards=3)

    def loop(config: dict[str, Any]) -> None:
        import json  # noqa: PLC0415 - runs in a worker

        import ray.train  # noqa: PLC0415

        from pipelines.corpus.micro_batches import iter_micro_batches, own_split  # noqa: PLC0415

        rank, feed = ray.train.get_context().get_world_rank(), config["feed"]
        seen = [batch.positions for batch in iter_micro_batches(own_split(feed), feed, rank=rank, world=2)]
        name = f"{rank}.json"
        (config["folder"] / name).write_text(json.dumps(seen))

    with handlers_kept():
        TorchTrainer(
            loop,
            train_loop_config={"feed": feed, "folder": tmp_path},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ray.train.ScalingConfig(num_workers=2),
            run_config=ray.train.RunConfig(name="feed", storage_path=str(tmp_path / "train")),
        ).fit()
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert seen[0] == [list(range(8 * step, 8 * step + 4)) for step in range(5)]
    assert seen[1] == [list(range(8 * step + 4, 8 * step + 8)) for step in range(5)]
