"""img2dataset folders, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.corpus.samples import Fault, Raw
from pipelines.corpus.sources.img2dataset import Img2DatasetSource


def source_of(folder: Path) -> Img2DatasetSource:
    return Img2DatasetSource(str(folder), "Describe.", 1_000_000)


def read_all(folder: Path, per_shard: int = 4) -> list[Raw | Fault]:
    source = source_of(folder)
    return [raw for unit in source.units(per_shard) for raw in source.read(unit)]


def split(found: list[Raw | Fault]) -> tuple[list[Raw], list[Fault]]:
    return [raw for raw in found if isinstance(raw, Raw)], [raw for raw in found if isinstance(raw, Fault)]


def test_units_are_full_whatever_tars_they_cross(img2dataset: Path) -> None:
    units = source_of(img2dataset).units(4)
    assert [(unit.index, unit.start, unit.stop) for unit in units] == [(0, 0, 4), (1, 4, 8), (2, 8, 12), (3, 12, 14)]
    files = [found.origin["file"] for found in source_of(img2dataset).read(units[2])]
    assert files == ["00000.tar", "00001.tar", "00001.tar", "00001.tar"]


def test_pictures_come_with_captions_and_failures_with_their_message(img2dataset: Path, jpegs: list[bytes]) -> None:
    raws, faults = split(read_all(img2dataset))
    assert [raw.images for raw in raws] == [(data,) for data in jpegs[:12]]
    assert [message["text"] for message in raws[7].messages] == ["Describe.", "Caption 0 of 00001"]
    assert [fault.reason for fault in faults] == ["not_downloaded"] * 2
    assert faults[0].detail == "failed_to_download: HTTP Error 404: Not Found"


def test_without_parquet_the_tar_speaks_for_itself(img2dataset: Path) -> None:
    (img2dataset / "00000.parquet").unlink()
    raws, faults = split(read_all(img2dataset))
    assert (len(raws), len(faults)) == (12, 0)


def test_without_its_tar_a_parquet_misses_every_picture(img2dataset: Path) -> None:
    (img2dataset / "00000.tar").unlink()
    raws, faults = split(read_all(img2dataset))
    assert len(raws) == 5
    reasons = [fault.reason for fault in faults]
    assert (reasons.count("missing_image"), reasons.count("not_downloaded")) == (7, 2)


def test_a_tar_cut_in_the_middle_keeps_what_stands_before_the_cut(img2dataset: Path) -> None:
    tar = img2dataset / "00001.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    raws, faults = split(read_all(img2dataset))
    assert len(raws) + len(faults) == 14
    lost = [fault for fault in faults if fault.reason == "damaged_file"]
    assert 1 <= len(lost) <= 4
    assert "the tar is cut inside '00001000" in lost[-1].detail


def test_what_the_table_does_not_list_is_put_aside_and_not_overlooked(img2dataset: Path, jpegs: list[bytes]) -> None:
    table = pq.read_table(img2dataset / "00001.parquet").slice(0, 3)
    twice = pa.concat_tables([table, table.slice(0, 1)])
    pq.write_table(twice, img2dataset / "00001.parquet")
    raws, faults = split(read_all(img2dataset))
    assert (len(raws), [fault.reason for fault in faults[2:]]) == (10, ["duplicate_key", "unlisted", "unlisted"])
    assert faults[-1].evidence["jpg"] == jpegs[11]


def test_a_row_without_any_caption_is_named(img2dataset: Path, blank_captions: Path) -> None:
    raws, faults = split(read_all(blank_captions))
    assert [raw.messages[1]["text"] for raw in raws] == ["from json", "from txt", "from parquet"]
    assert [fault.reason for fault in faults] == ["no_caption"]
    assert img2dataset != blank_captions


def test_a_folder_without_tars_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \.tar file"):
        source_of(tmp_path)
    with pytest.raises(FileNotFoundError):
        source_of(tmp_path / "nowhere")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_damaged_parquet_is_put_aside_and_its_tar_speaks_for_itself(
    img2dataset: Path, jpegs: list[bytes], share: float
) -> None:
    table = img2dataset / "00001.parquet"
    table.write_bytes(table.read_bytes()[: int(table.stat().st_size * share)])
    raws, faults = split(read_all(img2dataset))
    assert [raw.images for raw in raws] == [(data,) for data in jpegs[:12]]
    assert [fault.reason for fault in faults] == ["not_downloaded", "not_downloaded", "damaged_file"]
    assert "00001.parquet is not a readable parquet file" in faults[-1].detail
    (img2dataset / "00001.tar").unlink()
    raws, faults = split(read_all(img2dataset))
    assert (len(raws), faults[-1].reason) == (7, "damaged_file")


@pytest.mark.parametrize("column", ["caption", "key"])
def test_a_text_that_is_not_utf8_costs_its_own_row(img2dataset: Path, jpegs: list[bytes], column: str) -> None:
    path = img2dataset / "00000.parquet"
    table = pq.read_table(path)
    texts = [text.encode() for text in table[column].to_pylist()]
    texts[2] = b"\xff\xfe"
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(texts, pa.binary()).view(pa.string())), path)
    raws, faults = split(read_all(img2dataset))
    assert [raw.images[0] for raw in raws] == [*jpegs[:2], *jpegs[3:12]]
    reasons = ["bad_record", "not_downloaded", "not_downloaded", *(["unlisted"] if column == "key" else [])]
    assert [fault.reason for fault in faults] == reasons
    assert faults[0].origin["key"] == ("000000002" if column == "caption" else "")


def test_a_foreign_parquet_is_named(img2dataset: Path) -> None:
    table = pq.read_table(img2dataset / "00001.parquet").drop_columns(["key"])
    pq.write_table(table, img2dataset / "00001.parquet")
    with pytest.raises(ValueError, match="no column 'key'"):
        source_of(img2dataset).units(4)


def test_the_fingerprint_sees_a_changed_caption(img2dataset: Path) -> None:
    before = source_of(img2dataset).fingerprint()
    (img2dataset / "00000_stats.json").write_text(json.dumps({"count": 0}))
    assert source_of(img2dataset).fingerprint() == before
    table = pq.read_table(img2dataset / "00000.parquet").slice(0, 5)
    pq.write_table(table, img2dataset / "00000.parquet")
    assert source_of(img2dataset).fingerprint() != before
