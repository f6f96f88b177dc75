"""Work spread over Ray, or done here: the same answers in the same order."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import ray.data

from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import Duplicates
from pipelines.corpus.workers import mapped, spread
from tests.pipelines.corpus.formats import Record, recipe, write


def squaring() -> Callable[[int], int]:
    """A function that travels to workers, who cannot import a test."""

    def square(number: int) -> int:
        time.sleep(0.05 * (number % 3 == 0))
        if number == 13:
            raise ValueError("thirteen is not squared")
        return number * number

    return square


@pytest.fixture(scope="module")
def on_ray() -> Iterator[None]:
    with ray_session(RaySettings(num_cpus=4, object_store_mb=200), Progress(stream=io.StringIO())):
        yield


def test_without_ray_the_work_is_done_here() -> None:
    assert not ray.is_initialized()
    assert list(mapped(squaring(), range(5))) == [0, 1, 4, 9, 16]
    assert list(spread(squaring(), range(3))) == [(0, 0), (1, 1), (2, 4)]


@pytest.mark.pipeline
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("on_ray")
def test_ray_gives_the_same_in_order_and_errors_as_they_were() -> None:
    assert list(mapped(squaring(), range(13))) == [number * number for number in range(13)]
    assert sorted(spread(squaring(), range(9))) == [(number, number * number) for number in range(9)]
    with pytest.raises(ValueError, match=r"^thirteen is not squared$") as caught:
        list(mapped(squaring(), range(20)))
    assert type(caught.value) is ValueError


@pytest.mark.pipeline
@pytest.mark.timeout(240)
def test_the_number_of_workers_does_not_show_in_the_corpus(
    jpegs: list[bytes], tmp_path: Path, progress: Progress, request: pytest.FixtureRequest
) -> None:
    records = [Record(f"{number:02d}", data, f"Words {number}.") for number, data in enumerate(jpegs[:9])]
    records += [Record("20", jpegs[1], "Words 1."), Record("21", jpegs[4], "Else."), Record("22", b"", "x")]
    fields = write("webdataset", tmp_path / "raw", records)
    changes = {"duplicates": Duplicates(exact=True, near_distance=4), "samples_per_shard": 2}
    here = prepare(recipe("webdataset", str(tmp_path / "here"), fields, **changes), progress)
    request.getfixturevalue("on_ray")
    there = prepare(recipe("webdataset", str(tmp_path / "there"), fields, **changes), progress)
    assert (there.digest, there.quarantined, there.written) == (here.digest, here.quarantined, here.written)
    assert there.quarantined["duplicate"] == 1
    assert there.quarantined["corrupt_image"] == 1
    read = ray.data.read_webdataset(str(tmp_path / "there"), decoder=None, file_extensions=["tar"])
    assert read.count() == there.written, "the quarantine lies where nobody reads it by accident"
