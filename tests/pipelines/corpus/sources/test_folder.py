"""Folders of images, with captions beside them or in one metadata file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.corpus.samples import Fault, Raw
from pipelines.corpus.sources.folder import FolderSource

LIMIT = 100


def source_of(folder: Path, text: str | None = None) -> FolderSource:
    return FolderSource(str(folder), text, "Describe.", LIMIT)


def read_all(folder: Path, text: str | None = None) -> list[Raw | Fault]:
    source = source_of(folder, text)
    return [raw for unit in source.units(2) for raw in source.read(unit)]


def fill(folder: Path, **files: str) -> None:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def captions(found: list[Raw | Fault]) -> dict[str, str]:
    return {raw.identity: raw.messages[1]["text"] for raw in found if isinstance(raw, Raw)}


def reasons(found: list[Raw | Fault]) -> dict[str, str]:
    return {fault.origin["file"]: fault.reason for fault in found if isinstance(fault, Fault)}


def test_captions_stand_beside_the_images(tmp_path: Path) -> None:
    fill(tmp_path, b_jpg="B", b_txt="from txt", a_PNG="A", a_caption="from caption", sub__c_webp="C")
    fill(tmp_path, sub__c_json=json.dumps({"id": "own", "caption": "from json"}), d_jpg="D", d_json='{"text": "d"}')
    found = read_all(tmp_path)
    assert captions(found) == {"a": "from caption", "b": "from txt", "d": "d", "own": "from json"}
    assert [raw.position for raw in found if isinstance(raw, Raw)] == [0, 1, 2, 3]
    assert found[0].messages[0]["text"] == "Describe."  # type: ignore[union-attr]


def test_what_has_no_partner_is_put_aside(tmp_path: Path) -> None:
    fill(tmp_path, a_jpg="A", a_png="again", a_txt="a", lone_jpg="L", orphan_txt="o", _hidden_jpg="h", notes_md="n")
    fill(tmp_path, big_jpg="x" * (LIMIT + 1), big_txt="b", e_jpg="E", e_json="{", moving_gif="G", moving_txt="m")
    found = read_all(tmp_path)
    assert captions(found) == {"a": "a", "moving": "m"}
    assert reasons(found) == {
        "a.png": "duplicate_key",
        "big.jpg": "too_large",
        "e.jpg": "bad_record",
        "lone.jpg": "no_caption",
        "orphan.txt": "missing_image",
    }


ROWS: list[Any] = [
    {"file_name": "b.jpg", "text": "first", "note": "n1"},
    {"file_name": "sub/a.jpg", "text": "second", "note": "n2"},
    {"file_name": "b.jpg", "text": "again", "note": "n3"},
    {"file_name": "gone.jpg", "text": "g", "note": "n4"},
    {"file_name": "../secret.jpg", "text": "s", "note": "n5"},
    {"file_name": "pipe:cat x.jpg", "text": "p", "note": "n6"},
    {"file_name": "", "text": "nameless", "note": "n7"},
    {"file_name": "c.jpg", "text": "", "note": "n8"},
]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_metadata_file_says_what_there_is(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "images"
    fill(tmp_path, secret_jpg="S")
    fill(folder, b_jpg="B", sub__a_jpg="A", c_jpg="C", unlisted_jpg="U", b_txt="not read")
    path = folder / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n")
    else:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    found = read_all(folder)
    assert len(found) == len(ROWS) + 1
    assert captions(found) == {"b": "first", "sub/a": "second"}
    assert [fault.reason for fault in found if isinstance(fault, Fault)] == [
        "duplicate_key",
        "missing_image",
        "unsafe_path",
        "unsafe_path",
        "bad_record",
        "no_caption",
        "no_caption",
    ]
    assert all(b"S" not in (fault.evidence.get("image") or b"") for fault in found if isinstance(fault, Fault))
    assert captions(read_all(folder, "note")) == {"b": "n1", "sub/a": "n2", "c": "n8"}


def test_a_metadata_file_may_hold_conversations_and_odd_line_ends(tmp_path: Path) -> None:
    fill(tmp_path, a_jpg="A")
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "One\u2028two."}]
    row = {"file_name": "a.jpg", "id": 7, "conversations": turns}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n\n")
    assert captions(read_all(tmp_path)) == {"7": "One\u2028two."}


@pytest.mark.parametrize("content", ["{", b"\xff\xfe", "[" * 100_000], ids=["cut", "no text", "deep"])
def test_a_metadata_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | bytes) -> None:
    fill(tmp_path, a_jpg="A")
    (tmp_path / "metadata.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"metadata\.jsonl cannot be read"):
        source_of(tmp_path).units(2)


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no image"):
        source_of(tmp_path)
    with pytest.raises(FileNotFoundError):
        source_of(tmp_path / "nowhere")


def test_the_fingerprint_sees_texts_and_metadata(tmp_path: Path) -> None:
    fill(tmp_path, a_jpg="A", a_txt="a")
    found = [source_of(tmp_path).fingerprint()]
    (tmp_path / "a.txt").write_text("longer")
    found.append(source_of(tmp_path).fingerprint())
    for text in ("x", "y"):
        (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.jpg", "text": text}))
        found.append(source_of(tmp_path).fingerprint())
    assert len(set(found)) == 4
