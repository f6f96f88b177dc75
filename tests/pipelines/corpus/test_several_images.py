"""Samples with several images: the same corpus from every form, put aside as a whole, unchanged up to the trainer."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.progress import Progress
from pipelines.corpus.feed import CorpusFeed, _read_span
from pipelines.corpus.manifest import Manifest, verify
from pipelines.corpus.micro_batches import iter_micro_batches
from pipelines.corpus.prepare import prepare
from pipelines.corpus.reader import read_shard
from pipelines.corpus.recipe import Duplicates, Limits
from pipelines.evaluation.asked_corpus import corpus_suite
from tests.pipelines.corpus.formats import FORMATS, PROMPT, Member, recipe, write_members
from tests.pipelines.corpus.test_duplicates import softer
from tests.pipelines.corpus.test_images import frames
from tests.pipelines.corpus.test_micro_batches import Blocks

PLACE = "<image>"


@dataclass
class Album:
    """Some pictures with one caption; `places` in the question, as many as there are pictures unless told otherwise."""

    name: str
    images: list[bytes]
    caption: str
    places: int | None = None

    @property
    def question(self) -> str:
        """What the user says in a conversation."""
        return f"{PLACE * (len(self.images) if self.places is None else self.places)}\n{PROMPT}"


def write(form: str, root: Path, albums: list[Album]) -> dict[str, Any]:
    """The albums in a form; the recipe's fields."""
    root.mkdir(parents=True)
    place = {"llava": _llava, "parquet": _parquet, "folder": _folder}.get(form, _tar)
    fields = place(root, albums)
    return fields | ({"text_field": "texts", "image_field": "images"} if form == "parquet" else {})


def _files(root: Path, album: Album) -> list[str]:
    names = [f"{album.name}-{number}.jpg" for number in range(len(album.images))]
    for name, data in zip(names, album.images, strict=True):
        (root / name).write_bytes(data)
    return names


def _turns(album: Album) -> list[dict[str, str]]:
    return [{"from": "human", "value": album.question}, {"from": "gpt", "value": album.caption}]


def _llava(root: Path, albums: list[Album]) -> dict[str, Any]:
    (root / "images").mkdir()
    rows = []
    for album in albums:
        names = _files(root / "images", album)
        named = {"image": names[0] if len(names) == 1 else names} if names else {}
        rows.append({"id": album.name, "conversations": _turns(album)} | named)
    (root / "train.json").write_text(json.dumps(rows))
    return {"annotations": str(root / "train.json"), "images": str(root / "images")}


def _parquet(root: Path, albums: list[Album]) -> dict[str, Any]:
    rows = [
        {
            "id": album.name,
            "images": [{"bytes": data, "path": None} for data in album.images],
            "texts": _turns(album),
        }
        for album in albums
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "a.parquet")
    return {"images": str(root)}


def _folder(root: Path, albums: list[Album]) -> dict[str, Any]:
    rows = []
    for album in albums:
        names = _files(root, album)
        named = {"file_name": names[0]} if len(names) == 1 else {"file_names": names}
        rows.append({"id": album.name, "conversations": _turns(album)} | named)
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"images": str(root)}


def _tar(root: Path, albums: list[Album]) -> dict[str, Any]:
    members = []
    for album in albums:
        numbers = [""] if len(album.images) == 1 else [f"{number}." for number in range(len(album.images))]
        members += [Member(f"{album.name}.{n}jpg", data) for n, data in zip(numbers, album.images, strict=True)]
        members.append(Member(f"{album.name}.json", json.dumps({"conversations": _turns(album)}).encode()))
    write_members(root / "a.tar", members)
    return {"images": str(root)}


def stored(manifest: Manifest) -> list[tuple[dict[str, Any], list[bytes]]]:
    found = [read_shard(manifest.uri(number), shard) for number, shard in enumerate(manifest.shards)]
    return [(json.loads(one.record), one.images) for several in found for one in several]


@pytest.fixture
def albums(jpegs: list[bytes]) -> list[Album]:
    """Three pictures, one, two, eleven, and one again."""
    cuts = {"a": jpegs[:3], "b": jpegs[3:4], "c": jpegs[4:6], "d": jpegs[6:17], "e": jpegs[17:]}
    return [Album(name, images, f"Words {name}.") for name, images in cuts.items()]


def made(form: str, folder: Path, albums: list[Album], progress: Progress, **changes: Any) -> Manifest:
    fields = write(form, folder / form, albums)
    return prepare(recipe(form, str(folder / f"{form}-out"), fields, samples_per_shard=2, **changes), progress)


@pytest.mark.parametrize("form", FORMATS)
def test_several_pictures_arrive_in_order_from_every_form(
    form: str, albums: list[Album], tmp_path: Path, progress: Progress
) -> None:
    manifest = made(form, tmp_path, albums, progress)
    assert (manifest.written, dict(manifest.quarantined)) == (5, {})
    verify(manifest)
    found = stored(manifest)
    assert [images for _, images in found] == [album.images for album in albums]
    assert [record.get("images") for record, _ in found] == [3, None, 2, 11, None]
    assert [record["messages"][0]["text"] for record, _ in found] == [PROMPT] * 5
    if form != "llava":
        assert manifest.digest == made("llava", tmp_path, albums, progress).digest
    again = {"images": manifest.folder}
    assert prepare(recipe("webdataset", str(tmp_path / "again"), again, samples_per_shard=2), progress).digest == (
        manifest.digest
    )


def test_one_picture_stands_in_a_shard_as_ever_and_several_are_numbered(
    albums: list[Album], tmp_path: Path, progress: Progress
) -> None:
    manifest = made("llava", tmp_path, albums[:3], progress)
    names = []
    for number in range(2):
        with tarfile.open(manifest.uri(number)) as tar:
            names += tar.getnames()
    first = [f"000000000-a.{name}" for name in ("0.jpg", "1.jpg", "2.jpg", "json")]
    last = [f"000000002-c.{name}" for name in ("0.jpg", "1.jpg", "json")]
    assert names == [*first, "000000001-b.jpg", "000000001-b.json", *last]


@pytest.mark.parametrize("form", FORMATS)
def test_one_bad_picture_puts_the_whole_sample_aside_with_its_evidence(
    form: str, albums: list[Album], jpegs: list[bytes], tmp_path: Path, progress: Progress
) -> None:
    broken = jpegs[1][:2000]
    albums[0].images = [jpegs[0], broken, jpegs[2]]
    albums[2].images = [jpegs[4], frames(2, "GIF")]
    manifest = made(form, tmp_path, albums, progress)
    assert (manifest.input, manifest.written) == (5, 3)
    assert dict(manifest.quarantined) == {"corrupt_image": 1, "unsupported_image": 1}
    lines = (tmp_path / f"{form}-out" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["detail"].startswith("image 2 of 3: ")
    with tarfile.open(tmp_path / f"{form}-out" / "_quarantine" / "quarantine-000000.tar") as tar:
        held = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert [held[f"000000000.image_{number}.bin"] for number in range(3)] == albums[0].images
    assert json.loads(held["000000000.record.bin"])["images"] == 3


@pytest.mark.parametrize("form", FORMATS)
def test_more_pictures_than_the_limit_are_put_aside_by_name(
    form: str, albums: list[Album], tmp_path: Path, progress: Progress
) -> None:
    manifest = made(form, tmp_path, albums, progress, limits=Limits(max_images=2))
    assert (manifest.written, dict(manifest.quarantined)) == (3, {"too_many_images": 2})
    lines = (tmp_path / f"{form}-out" / "quarantine.jsonl").read_text()
    assert "11 images, the limit is 2 (limits.max_images)" in lines


@pytest.mark.parametrize("form", FORMATS)
def test_places_fit_the_pictures_or_there_are_none(
    form: str, albums: list[Album], tmp_path: Path, progress: Progress
) -> None:
    albums[0].places, albums[2].places, albums[3].places = 2, 0, 12
    manifest = made(form, tmp_path, albums, progress)
    assert (manifest.written, dict(manifest.quarantined)) == (3, {"bad_record": 2})
    lines = (tmp_path / f"{form}-out" / "quarantine.jsonl").read_text()
    assert "the turns have 2 <image> for 3 images, expected one for each or none" in lines
    assert stored(manifest)[1][1] == albums[2].images


def test_a_picture_that_is_not_there_costs_the_sample(albums: list[Album], tmp_path: Path, progress: Progress) -> None:
    fields = write("llava", tmp_path / "raw", albums)
    (tmp_path / "raw" / "images" / "a-1.jpg").unlink()
    manifest = prepare(recipe("llava", str(tmp_path / "out"), fields), progress)
    assert (manifest.written, dict(manifest.quarantined)) == (4, {"missing_image": 1})
    assert '"image": ["a-0.jpg", "a-1.jpg", "a-2.jpg"]' in (tmp_path / "out" / "quarantine.jsonl").read_text()


def test_a_tar_that_lost_a_picture_is_noticed(albums: list[Album], tmp_path: Path, progress: Progress) -> None:
    """The record of our own corpora says how many there were; of others, gaps and places tell."""
    manifest = made("llava", tmp_path, albums, progress)
    (tmp_path / "two").mkdir()
    for number in range(len(manifest.shards)):
        with tarfile.open(manifest.uri(number)) as tar:
            members = [Member(one.name, tar.extractfile(one).read()) for one in tar]  # type: ignore[union-attr]
        lost = ("-a.2.jpg", "-c.1.jpg", "-d.4.jpg")
        write_members(tmp_path / "two" / f"{number}.tar", [one for one in members if not one.name.endswith(lost)])
    again = prepare(recipe("webdataset", str(tmp_path / "out"), {"images": str(tmp_path / "two")}), progress)
    assert (again.written, dict(again.quarantined)) == (2, {"missing_image": 3})


def test_statistics_count_every_picture(albums: list[Album], tmp_path: Path, progress: Progress) -> None:
    made("llava", tmp_path, [*albums, Album("f", [], "Words f.")], progress)
    found = json.loads((tmp_path / "llava-out" / "statistics.json").read_text())
    assert found["kinds"] == {"jpg": 2, "several pictures": 3, "text only": 1}
    assert [found["images"][name] for name in ("count", "sum", "min", "max")] == [6, 18, 0, 11]
    assert found["image_bytes"]["count"] == found["width"]["count"] == 18
    assert found["image_bytes"]["sum"] == sum(len(data) for album in albums for data in album.images)


def test_repetitions_are_told_by_all_pictures_in_their_order(
    jpegs: list[bytes], tmp_path: Path, progress: Progress
) -> None:
    a, b, c = jpegs[0], jpegs[3], jpegs[6]
    listed = [[a, b], [b, a], [a, b], [a, c], [a], [a, b, c]]
    albums = [Album(f"{number}", images, "Words.") for number, images in enumerate(listed)]
    exact = made("llava", tmp_path / "exact", albums, progress, duplicates=Duplicates(exact=True))
    assert [record["id"] for record, _ in stored(exact)] == ["0", "1", "3", "4", "5"]
    albums += [Album("6", [softer(a), softer(b)], "Softer."), Album("7", [softer(b), a], "Softer.")]
    near = made("llava", tmp_path / "near", albums, progress, duplicates=Duplicates(near_distance=6))
    assert [record["id"] for record, _ in stored(near)] == ["0", "1", "3", "4", "5"]
    faults = [json.loads(line) for line in (tmp_path / "near" / "llava-out" / "quarantine.jsonl").open()]
    assert [(fault["position"], fault["detail"].split(" in ")[0]) for fault in faults] == [
        (2, "record 0 has pictures that differ"),
        (6, "record 0 has pictures that differ"),
        (7, "record 1 has pictures that differ"),
    ]


def test_a_sample_with_several_pictures_is_no_question_of_a_suite(
    albums: list[Album], tmp_path: Path, progress: Progress, lines: Any
) -> None:
    folder = made("llava", tmp_path, albums, progress).folder
    suite = corpus_suite(folder, str(tmp_path / "store"), progress)
    assert suite is not None
    assert suite.count == 2
    assert "2 of 5 samples have one picture and a question; 3 have several" in lines.getvalue()
    only = made("llava", tmp_path / "only", [albums[0]], progress).folder
    with pytest.raises(ValueError, match="1 of 1 samples have several pictures"):
        corpus_suite(only, str(tmp_path / "store"), progress)


def test_micro_batches_hold_each_samples_pictures(albums: list[Album], tmp_path: Path, progress: Progress) -> None:
    albums.append(Album("f", [], "Words f."))
    folder = made("llava", tmp_path, albums, progress).folder
    feed = CorpusFeed(corpora=folder, seed=0, micro_batch=3)
    blocks = list(_read_span({"id": np.array([0])}, blend=feed.blend(), feed=feed, first=0, stop=feed.stop(), world=1))
    wanted = {f"{number:09d}-{album.name}": album.images for number, album in enumerate(albums)}
    found: dict[str, list[bytes]] = {}
    for micro in iter_micro_batches(Blocks(blocks), feed, rank=0, world=1):  # type: ignore[arg-type]
        assert micro is not None
        found |= dict(zip(micro.keys, micro.images, strict=True))
    assert found == wanted
