"""From a source to a corpus: nothing lost, nothing twice, nothing silent."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from cluster.progress import Progress
from pipelines.corpus import prepare as module
from pipelines.corpus.manifest import Manifest, load_manifest, verify
from pipelines.corpus.parts import Job, Part
from pipelines.corpus.prepare import prepare
from pipelines.corpus.reader import read_shard
from pipelines.corpus.recipe import Limits, PrepareRecipe
from pipelines.corpus.sources import Source, Unit
from pipelines.corpus.sources.base import Mapper
from pipelines.corpus.sources.rendered import RenderedSource


def records(manifest: Manifest) -> list[dict[str, Any]]:
    found = [read_shard(manifest.uri(number), shard) for number, shard in enumerate(manifest.shards)]
    return [json.loads(sample.record) for samples in found for sample in samples]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def plant_faults(llava: Any, jpegs: list[bytes]) -> None:
    """A missing image, a cut JPEG, a zero-byte file, a record without caption, a GIF."""
    gif = io.BytesIO()
    Image.new("RGB", (4, 4)).save(gif, "GIF")
    llava.add("gone.jpg", None, "x")
    llava.add("cut.jpg", jpegs[0][: len(jpegs[0]) // 2], "x")
    llava.add("zero.jpg", b"", "x")
    llava.add("silent.jpg", jpegs[0], "x", conversations=[])
    llava.add("moving.gif", gif.getvalue(), "x")
    llava.add("last.jpg", jpegs[1], "The last good one.")
    llava.save()


def test_a_small_folder_with_bad_records_becomes_a_corpus_of_the_rest(
    llava: Any, jpegs: list[bytes], tmp_path: Path, progress: Progress, lines: io.StringIO
) -> None:
    plant_faults(llava, jpegs)
    manifest = prepare(llava.recipe(tmp_path / "out"), progress)
    assert (manifest.input, manifest.written) == (24, 19)
    assert manifest.quarantined == {"corrupt_image": 2, "missing_image": 1, "no_caption": 1, "unsupported_image": 1}
    assert load_manifest(manifest.folder) == manifest
    verify(manifest)
    assert records(manifest)[-1]["messages"][1]["text"] == "The last good one."
    quarantine = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    named = {fault["origin"]["image"]: fault["reason"] for fault in quarantine}
    assert named["gone.jpg"] == "missing_image"
    assert named["cut.jpg"] == named["zero.jpg"] == "corrupt_image"
    assert "gone.jpg" in lines.getvalue()


def test_captions_of_img2dataset_become_turns(img2dataset: Path, tmp_path: Path, progress: Progress) -> None:
    recipe = PrepareRecipe(
        source="img2dataset", images=str(img2dataset), output=str(tmp_path / "out"), caption_prompt="Say what it is."
    )
    manifest = prepare(recipe, progress)
    assert (manifest.input, manifest.written, dict(manifest.quarantined)) == (14, 12, {"not_downloaded": 2})
    assert records(manifest)[0]["messages"] == [
        {"role": "user", "text": "Say what it is."},
        {"role": "assistant", "text": "Caption 0 of 00000"},
    ]


def test_the_same_input_gives_the_same_bytes(llava: Any, tmp_path: Path, progress: Progress) -> None:
    one = prepare(llava.recipe(tmp_path / "one"), progress)
    moved = tmp_path / "elsewhere"
    llava.images.parent.rename(moved)
    places = {"annotations": str(moved / "train.json"), "images": str(moved / "images")}
    two = prepare(llava.recipe(tmp_path / "two", **places), progress)
    assert one.digest == two.digest
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "two")
    assert (tmp_path / "one" / "manifest.json").read_bytes() == (tmp_path / "two" / "manifest.json").read_bytes()


class Counting:
    """A source that notes which units were read, and stops like a killed process after some."""

    def __init__(self, source: Source, stop_after: int = 10**6) -> None:
        self.source, self.read_units, self.stop_after = source, list[int](), stop_after

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def units(self, samples_per_shard: int, mapped: Mapper = map) -> list[Unit]:
        return self.source.units(samples_per_shard, mapped)

    def read(self, unit: Unit) -> Iterator[Any]:
        if len(self.read_units) == self.stop_after:
            raise KeyboardInterrupt
        self.read_units.append(unit.index)
        return self.source.read(unit)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Counting]:
    def install(stop_after: int = 10**6) -> Counting:
        source = Counting(RenderedSource(0, 60, 3), stop_after)
        monkeypatch.setattr(module, "open_source", lambda _: source)
        return source

    return install


def test_a_second_run_reads_nothing_and_says_so(
    rendered: Callable[..., Manifest], counting: Callable[..., Counting], lines: io.StringIO
) -> None:
    first = rendered()
    source = counting()
    assert rendered() == first
    assert source.read_units == []
    assert "is complete: 60 samples, nothing to do" in lines.getvalue()


@pytest.mark.parametrize("stop_after", [1, 3, 7])
def test_an_interrupted_run_makes_only_what_is_missing(
    rendered: Callable[..., Manifest], counting: Callable[..., Counting], tmp_path: Path, stop_after: int
) -> None:
    whole = rendered(output=str(tmp_path / "whole"))
    counting(stop_after)
    with pytest.raises(KeyboardInterrupt):
        rendered()
    with pytest.raises(FileNotFoundError):
        load_manifest(str(tmp_path / "rendered"))
    source = counting()
    assert rendered().digest == whole.digest
    assert source.read_units == list(range(stop_after, 8))


def test_what_another_recipe_left_unfinished_is_not_taken(
    rendered: Callable[..., Manifest], counting: Callable[..., Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        rendered()
    monkeypatch.undo()
    assert rendered(seed=1).digest == rendered(folder="fresh", seed=1).digest


def test_a_lost_or_damaged_shard_alone_is_made_again(
    rendered: Callable[..., Manifest], counting: Callable[..., Counting], tmp_path: Path
) -> None:
    first = rendered()
    (tmp_path / "rendered" / "corpus-000002.tar").unlink()
    (tmp_path / "rendered" / "corpus-000005.tar").write_bytes(b"short")
    source = counting()
    assert rendered() == first
    assert source.read_units == [2, 5]
    verify(first)


def test_another_recipe_does_not_replace_a_corpus_unasked(rendered: Callable[..., Manifest], tmp_path: Path) -> None:
    first = rendered()
    with pytest.raises(ValueError, match="holds a corpus from another recipe"):
        rendered(seed=1)
    assert load_manifest(first.folder) == first
    second = rendered(seed=1, count=20, overwrite=True)
    assert second.digest != first.digest
    assert len(list((tmp_path / "rendered").glob("*.tar"))) == len(second.shards) == 3


def test_overwrite_looks_at_every_image_again(
    rendered: Callable[..., Manifest], counting: Callable[..., Counting]
) -> None:
    first = rendered()
    source = counting()
    assert rendered(overwrite=True) == first
    assert source.read_units == list(range(8))


def fail_some(llava: Any, count: int) -> None:
    for record in llava.records[:count]:
        record["image"] = "gone.jpg"
    llava.save()


def test_too_many_bad_samples_stop_the_run_with_the_reasons(llava: Any, tmp_path: Path, progress: Progress) -> None:
    fail_some(llava, 11)
    with pytest.raises(ValueError, match=r"11 of 18 samples are bad \(11 x missing_image\)"):
        prepare(llava.recipe(tmp_path / "out"), progress)
    assert len((tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()) == 11
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert prepare(llava.recipe(tmp_path / "out", max_bad_share=0.7), progress).written == 7


def test_ten_bad_samples_of_a_small_folder_are_tolerated(llava: Any, tmp_path: Path, progress: Progress) -> None:
    fail_some(llava, 10)
    assert prepare(llava.recipe(tmp_path / "out"), progress).written == 8
    with pytest.raises(ValueError, match="more than 3"):
        prepare(llava.recipe(tmp_path / "strict", tolerated_bad=3), progress)


def test_a_corpus_without_any_sample_is_refused(llava: Any, tmp_path: Path, progress: Progress) -> None:
    llava.records = llava.records[:4]
    fail_some(llava, 4)
    with pytest.raises(ValueError, match="none of 4 records is usable"):
        prepare(llava.recipe(tmp_path / "out"), progress)


def test_stock_webdataset_reads_our_shards(llava: Any, jpegs: list[bytes], tmp_path: Path, progress: Progress) -> None:
    llava.records.append(
        {"id": "t", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    )
    llava.save()
    manifest = prepare(llava.recipe(tmp_path / "out"), progress)
    urls = [manifest.uri(number) for number in range(len(manifest.shards))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert len(samples) == 19
    assert samples[3]["jpg"].size == (240, 180)
    assert samples[3]["json"]["messages"][1]["text"] == "Words about picture 3."
    assert "jpg" not in samples[18]
    raw = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["jpg"] for sample in raw[:18]] == jpegs


def test_shards_that_the_driver_cannot_see_are_not_promised(
    rendered: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Workers on other machines would write to their own disks."""
    real = Job.run

    def elsewhere(job: Job, unit: Unit) -> Part:
        part = real(job, unit)
        Path(job.output, f"corpus-{unit.index:06d}.tar").unlink()
        return part

    monkeypatch.setattr(Job, "run", elsewhere)
    with pytest.raises(ValueError, match="lacks shards that workers have written"):
        rendered()
    assert not (tmp_path / "rendered" / "manifest.json").exists()


def test_limits_hold_inside_tars_too(img2dataset: Path, tmp_path: Path, progress: Progress) -> None:
    recipe = PrepareRecipe(
        source="img2dataset", images=str(img2dataset), output=str(tmp_path / "out"), limits=Limits(max_bytes=1000)
    )
    with pytest.raises(ValueError, match=r"12 of 14 samples are bad \(12 x too_large\)"):
        prepare(recipe, progress)
