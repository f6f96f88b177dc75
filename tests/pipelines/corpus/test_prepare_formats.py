"""The same photographs in five forms, here and in an object store: one corpus."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from cluster import storage
from cluster.progress import Progress
from pipelines.corpus.manifest import verify
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
from tests.pipelines.corpus.formats import FORMATS, Record, recipe, write


@pytest.fixture
def records(jpegs: list[bytes]) -> list[Record]:
    return [Record(f"{number:05d}", data, f"Words about picture {number}.") for number, data in enumerate(jpegs[:12])]


@pytest.fixture
def wanted(records: list[Record], tmp_path: Path, progress: Progress) -> str:
    """The digest of the records as a LLaVA folder."""
    fields = write("llava", tmp_path / "wanted", records)
    return prepare(recipe("llava", str(tmp_path / "wanted-out"), fields), progress).digest


@pytest.mark.parametrize("form", FORMATS[1:])
def test_a_form_does_not_show_in_the_corpus(
    form: str, records: list[Record], wanted: str, tmp_path: Path, progress: Progress
) -> None:
    fields = write(form, tmp_path / form, records)
    manifest = prepare(recipe(form, str(tmp_path / "out"), fields), progress)
    assert (manifest.input, manifest.written, manifest.sizes) == (12, 12, (5, 5, 2))
    assert manifest.digest == wanted
    other = prepare(recipe(form, str(tmp_path / "other"), fields, caption_prompt="Say."), progress)
    assert (other.digest != wanted) == (form != "llava")


@pytest.mark.pipeline
@pytest.mark.parametrize("form", FORMATS)
def test_an_object_store_does_not_show_in_the_corpus(
    form: str, records: list[Record], wanted: str, tmp_path: Path, bucket: str
) -> None:
    progress = Progress(stream=io.StringIO())
    root = tmp_path / form
    fields = write(form, root, records)
    for path in root.rglob("*"):
        if path.is_file():
            storage.put_file(path, f"{bucket}/raw/{path.relative_to(root)}")
    there = {name: place.replace(str(root), f"{bucket}/raw") for name, place in fields.items()}
    manifest = prepare(recipe(form, f"{bucket}/out", there), progress)
    assert manifest.digest == wanted
    verify(manifest)
    assert prepare(recipe(form, f"{bucket}/out", there), progress) == manifest


@pytest.mark.pipeline
@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_glob_means_its_files(
    form: str, records: list[Record], tmp_path: Path, bucket: str, progress: Progress
) -> None:
    write(form, tmp_path / form, records)
    suffix = ".parquet" if form == "parquet" else ".tar"
    for path in (tmp_path / form).iterdir():
        storage.put_file(path, f"{bucket}/raw/{path.name}")
    for place in (str(tmp_path / form), f"{bucket}/raw"):
        output = str(tmp_path / f"out-{place.partition(':')[0][-2:]}")
        assert prepare(recipe(form, output, {"images": f"{place}/*1{suffix}"}), progress).written == 5


def test_our_own_corpus_is_a_source_of_itself(
    records: list[Record], wanted: str, tmp_path: Path, progress: Progress
) -> None:
    fields = {"images": str(tmp_path / "wanted-out")}
    assert prepare(recipe("webdataset", str(tmp_path / "again"), fields), progress).digest == wanted
    assert len(records) == 12


def test_where_a_sample_came_from_stands_beside_the_shards(
    records: list[Record], tmp_path: Path, progress: Progress
) -> None:
    prepare(recipe("parquet", str(tmp_path / "out"), write("parquet", tmp_path / "raw", records)), progress)
    lines = (tmp_path / "out" / "origins" / "corpus-000001.jsonl").read_text().splitlines()
    assert json.loads(lines[2]) == {"key": "000000007-00007", "origin": {"file": "train-00001.parquet", "row": 0}}


@pytest.mark.parametrize("form", FORMATS)
def test_a_program_is_no_place(form: str, tmp_path: Path, progress: Progress) -> None:
    fields = {"images": "pipe:cat /etc/passwd", "annotations": "pipe:cat x" if form == "llava" else None}
    with pytest.raises(ValueError, match="has the scheme 'pipe'"):
        prepare(PrepareRecipe(source=form, output=str(tmp_path / "out"), **fields), progress)  # type: ignore[arg-type]
