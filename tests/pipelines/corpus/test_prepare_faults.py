"""Every fault that is known to happen, planted among good photographs: kept as documented, or put aside by reason."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.progress import Progress
from pipelines.corpus.images import decode_image
from pipelines.corpus.manifest import Manifest, load_manifest, verify
from pipelines.corpus.prepare import prepare
from pipelines.corpus.reader import read_shard
from pipelines.corpus.recipe import Limits
from tests.pipelines.corpus.formats import FORMATS, Member, Record, recipe, write, write_members
from tests.pipelines.corpus.test_images import encoded, frames, huge_png

GOOD = 8
LIMITS = Limits(max_bytes=300_000)


def rotated(jpeg: bytes) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.open(io.BytesIO(jpeg)), "JPEG", exif=exif.tobytes())


def deep(jpeg: bytes) -> bytes:
    levels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(levels), "PNG")


def planted(jpegs: list[bytes]) -> list[tuple[Record, str | None]]:
    """A record, and the reason that it is put aside for, or None where it is kept."""
    cmyk = encoded(Image.open(io.BytesIO(jpegs[9])).convert("CMYK"), "JPEG")
    oversized = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)), "PNG")
    table: list[tuple[str, bytes | None, str | None, str | None]] = [
        ("truncated", jpegs[10][: len(jpegs[10]) // 2], "x", "corrupt_image"),
        ("zero", b"", "x", "corrupt_image"),
        ("bomb", huge_png(60_000, 60_000), "x", "too_large"),
        ("sliver", encoded(Image.new("RGB", (2_000_000, 1)), "PNG"), "x", "too_narrow"),
        ("gif", frames(500, "GIF"), "x", "unsupported_image"),
        ("oversized", oversized, "x", "too_large"),
        ("cmyk", cmyk, "x", None),
        ("deep", deep(jpegs[11]), "x", None),
        ("rotated", rotated(jpegs[12]), "x", None),
        ("silent", jpegs[13], None, "no_caption"),
        ("blank", jpegs[14], " \n", "no_caption"),
        ("absent", None, "x", "missing_image"),
    ]
    return [(Record(name, image, caption), reason) for name, image, caption, reason in table]


@pytest.mark.parametrize("form", FORMATS)
def test_every_planted_fault_is_kept_as_documented_or_put_aside_by_reason(
    form: str, jpegs: list[bytes], tmp_path: Path, progress: Progress
) -> None:
    good = [Record(f"{number:05d}", jpegs[number], f"Words {number}.") for number in range(GOOD)]
    faults = planted(jpegs)
    fields = write(form, tmp_path / "raw", good + [record for record, _ in faults])
    manifest = prepare(recipe(form, str(tmp_path / "out"), fields, limits=LIMITS), progress)
    expected = Counter(reason for _, reason in faults if reason is not None)
    assert dict(manifest.quarantined) == expected
    assert manifest.input == GOOD + len(faults) == manifest.written + sum(expected.values())
    verify(manifest)
    seen = {sample["id"]: image for sample, (image,) in samples(manifest)}
    assert set(seen) == {record.name for record in good} | {"cmyk", "deep", "rotated"}
    assert seen["cmyk"] == next(record.image for record, _ in faults if record.name == "cmyk")
    assert decode_image(seen["rotated"]).size == (180, 240)
    grey = np.asarray(Image.open(io.BytesIO(jpegs[11])).convert("L"))
    assert np.array_equal(np.asarray(decode_image(seen["deep"]))[..., 0], grey)


def samples(manifest: Manifest) -> list[tuple[dict[str, Any], list[bytes]]]:
    found = [read_shard(manifest.uri(number), shard) for number, shard in enumerate(manifest.shards)]
    return [(json.loads(stored.record), stored.images) for several in found for stored in several]


def link(header: tarfile.TarInfo) -> None:
    header.type, header.linkname, header.size = tarfile.SYMTYPE, "/etc/passwd", 0


def device(header: tarfile.TarInfo) -> None:
    header.type, header.size = tarfile.CHRTYPE, 0


TARS: dict[str, tuple[list[Member], dict[str, int], int]] = {
    "gathered": ([Member("a.jpg", b"@"), Member("b.jpg", b"@"), Member("b.txt", b"b"), Member("a.txt", b"a")], {}, 2),
    "duplicate key": (
        [Member("a.jpg", b"@"), Member("a.txt", b"one"), Member("a.jpg", b"@"), Member("a.txt", b"two")],
        {"duplicate_key": 1},
        1,
    ),
    "duplicate key later": (
        [
            *(Member("a.jpg", b"@"), Member("a.txt", b"1")),
            *(Member("b.jpg", b"@"), Member("b.txt", b"b")),
            *(Member("a.jpg", b"@"), Member("a.json", b"{}")),
        ],
        {"duplicate_key": 1},
        2,
    ),
    "parent": ([Member("../a.jpg", b"@"), Member("../a.txt", b"a")], {"unsafe_path": 1}, 0),
    "absolute": ([Member("/etc/a.jpg", b"@"), Member("/etc/a.txt", b"a")], {"unsafe_path": 1}, 0),
    "pipe": ([Member("pipe:cat a.jpg", b"@"), Member("pipe:cat a.txt", b"a")], {"unsafe_path": 1}, 0),
    "link": ([Member("a.jpg", b"", link), Member("a.txt", b"a")], {"unsafe_member": 1}, 0),
    "device": ([Member("a.jpg", b"", device), Member("a.txt", b"a")], {"unsafe_member": 1}, 0),
    "pickle": (
        [Member("a.jpg", b"@"), Member("a.txt", b"a"), Member("a.pkl", b"\x80\x04N.")],
        {"pickled_member": 1},
        0,
    ),
    "weights": ([Member("a.pth", b"\x80"), Member("a.jpg", b"@"), Member("a.txt", b"a")], {"pickled_member": 1}, 0),
    "library": ([Member("a.pyd", b"MZ")], {"pickled_member": 1}, 0),
    "long text": ([Member("a.jpg", b"@"), Member("a.txt", b"x" * 1_000_001)], {"too_large": 1}, 0),
    "bad json": ([Member("a.jpg", b"@"), Member("a.json", b'{"caption": ')], {"bad_record": 1}, 0),
    "no text": ([Member("a.jpg", b"@"), Member("a.cls", b"7")], {"no_caption": 1}, 0),
    "readme": ([Member("README", b"read me")], {"no_caption": 1}, 0),
    "in folders": (
        [Member("x/a.jpg", b"@"), Member("x/a.txt", b"a"), Member("y/a.jpg", b"@"), Member("y/a.txt", b"a")],
        {},
        2,
    ),
}


@pytest.mark.parametrize("case", TARS)
def test_odd_members_of_a_tar(case: str, jpegs: list[bytes], tmp_path: Path, progress: Progress) -> None:
    members, expected, kept = TARS[case]
    filled = [Member(one.name, jpegs[15] if one.data == b"@" else one.data, one.change) for one in members]
    good = [Member("0.jpg", jpegs[0]), Member("0.txt", b"zero")]
    last = [Member("z.jpg", jpegs[1]), Member("z.txt", b"last")]
    (tmp_path / "raw").mkdir()
    write_members(tmp_path / "raw" / "0.tar", good + filled + last)
    manifest = prepare(recipe("webdataset", str(tmp_path / "out"), {"images": str(tmp_path / "raw")}), progress)
    assert (dict(manifest.quarantined), manifest.written) == (expected, 2 + kept)
    assert [record["id"] for record, _ in samples(manifest)][-1] == "z"
    held = (tmp_path / "out" / "_quarantine").exists()
    assert held == bool(expected)


@pytest.mark.parametrize("code", [0xD800, 0xDC80])
def test_a_path_that_no_encoding_takes_is_put_aside_and_said(code: int, llava: Any, tmp_path: Path) -> None:
    llava.add(f"{chr(code)}.jpg", None, "x")
    llava.save()
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    manifest = prepare(llava.recipe(tmp_path / "out"), Progress(stream=stream))
    assert (manifest.written, dict(manifest.quarantined)) == (18, {"missing_image": 1})
    stream.seek(0)
    assert f"\\u{code:x}.jpg" in stream.read()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_tar_cut_in_the_middle_keeps_what_stands_before_the_cut(
    share: float, jpegs: list[bytes], tmp_path: Path, progress: Progress
) -> None:
    records = [Record(f"{number:05d}", data, f"Words {number}.") for number, data in enumerate(jpegs[:16])]
    counts = {}
    for form in ("webdataset", "img2dataset"):
        fields = write(form, tmp_path / form, records)
        tar = tmp_path / form / "00000.tar"
        tar.write_bytes(tar.read_bytes()[: int(tar.stat().st_size * share)])
        manifest = prepare(recipe(form, str(tmp_path / f"{form}-out"), fields), progress)
        assert manifest.input == manifest.written + manifest.quarantined["damaged_file"]
        counts[form] = manifest.written, manifest.quarantined["damaged_file"], manifest.input
    assert counts["webdataset"][0] == counts["img2dataset"][0]
    assert counts["webdataset"][1] == 1
    assert counts["img2dataset"][2] == 16


def test_without_its_parquet_a_tar_of_img2dataset_speaks_for_itself(
    jpegs: list[bytes], tmp_path: Path, progress: Progress
) -> None:
    records = [Record(f"{number:05d}", data, f"Words {number}.") for number, data in enumerate(jpegs[:6])]
    fields = write("img2dataset", tmp_path / "raw", records)
    whole = prepare(recipe("img2dataset", str(tmp_path / "whole"), fields), progress)
    (tmp_path / "raw" / "00000.parquet").unlink()
    assert prepare(recipe("img2dataset", str(tmp_path / "out"), fields), progress).digest == whole.digest


def test_an_index_says_how_much_a_cut_tar_has_lost(jpegs: list[bytes], tmp_path: Path, progress: Progress) -> None:
    records = [Record(f"{number:05d}", data, f"Words {number}.") for number, data in enumerate(jpegs[:12])]
    first = prepare(recipe("folder", str(tmp_path / "one"), write("folder", tmp_path / "raw", records)), progress)
    tar = tmp_path / "one" / "corpus-000001.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    (tmp_path / "one" / "corpus-000002.tar").unlink()
    again = prepare(recipe("webdataset", str(tmp_path / "two"), {"images": str(tmp_path / "one")}), progress)
    assert again.input == first.written == 12
    assert again.written + again.quarantined["damaged_file"] == 12
    assert 6 <= again.written < 10


def test_a_damaged_row_group_costs_its_own_rows(jpegs: list[bytes], tmp_path: Path, progress: Progress) -> None:
    records = [Record(f"{number:05d}", data, f"Words {number}.") for number, data in enumerate(jpegs[:12])]
    fields = write("parquet", tmp_path / "raw", records)
    path = tmp_path / "raw" / "train-00000.parquet"
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = column.data_page_offset
    data[start : start + 200] = bytes(200)
    path.write_bytes(data)
    manifest = prepare(recipe("parquet", str(tmp_path / "out"), fields), progress)
    assert (manifest.input, manifest.written, dict(manifest.quarantined)) == (12, 9, {"damaged_file": 3})


def test_what_was_put_aside_can_be_looked_into(jpegs: list[bytes], tmp_path: Path, progress: Progress) -> None:
    broken = jpegs[3][:2000]
    records = [Record("good", jpegs[0], "x"), Record("zcut", broken, "Cut off.")]
    prepare(recipe("webdataset", str(tmp_path / "out"), write("webdataset", tmp_path / "raw", records)), progress)
    line = json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())
    assert (line["position"], line["reason"], line["origin"]) == (
        1,
        "corrupt_image",
        {"file": "00000.tar", "key": "zcut"},
    )
    with tarfile.open(tmp_path / "out" / "_quarantine" / "quarantine-000000.tar") as tar:
        held = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert json.loads(held["000000001.json"]) == line
    assert held["000000001.image.bin"] == broken
    assert json.loads(held["000000001.record.bin"])["messages"][1]["text"] == "Cut off."
    assert load_manifest(str(tmp_path / "out")).written == 1
