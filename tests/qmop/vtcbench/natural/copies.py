"""Tiny made-up copies of the sources, in the formats in which they are distributed."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from qmop.vtcbench.natural.samples import Fault, Sample

Rows = Sequence[Mapping[str, Any]]


def picture(shade: int = 0, kind: str = "PNG") -> bytes:
    """An encoded picture, different for every shade; its base64 is longer than any index."""
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), (shade % 256, 40, 200)).save(buffer, kind)
    return buffer.getvalue()


def cell(shade: int = 0, kind: str = "PNG") -> dict[str, Any]:
    """A picture as Hugging Face's parquet holds it."""
    return {"bytes": picture(shade, kind), "path": f"{shade}.png"}


def coded(shade: int = 0) -> str:
    """A picture as VLMEvalKit's TSV holds it."""
    return base64.b64encode(picture(shade)).decode()


def parquet(path: Path, rows: Rows) -> Path:
    """Write a parquet file of several row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=2)
    return path


def tsv(path: Path, rows: Rows) -> Path:
    """Write a TSV as pandas does."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_json(path: Path, content: Any) -> Path:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def image(path: Path, shade: int = 0) -> Path:
    """Write a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(shade, "JPEG" if path.suffix == ".jpg" else "PNG"))
    return path


def samples(found: Iterable[Sample | Fault]) -> list[Sample]:
    """All that was found, which must be samples with pictures."""
    listed = list(found)
    assert not [one for one in listed if isinstance(one, Fault)]
    kept = [one for one in listed if isinstance(one, Sample)]
    assert all(one.picture() for one in kept)
    return kept


def faults(found: Iterable[Sample | Fault]) -> dict[str, str]:
    """Reason by id of what is no sample."""
    return {one.id: one.reason for one in found if isinstance(one, Fault)}


def mme_rows(count: int = 2) -> list[dict[str, Any]]:
    """Rows of MME's parquet: two questions on each of `count` pictures."""
    return [
        {
            "question_id": f"existence/{number:04d}.png",
            "image": cell(number),
            "question": f"Is there a {thing} in this image? Please answer yes or no.",
            "answer": answer,
            "category": "existence",
        }
        for number in range(count)
        for thing, answer in (("dog", "Yes"), ("cat", "No"))
    ]


def mmstar_rows(count: int = 3) -> list[dict[str, Any]]:
    """Rows of MMStar's parquet."""
    return [
        {
            "index": number,
            "question": f"How many, {number}?\nOptions: A: one, B: two, three, C: four, D: five",
            "image": cell(number, "JPEG"),
            "answer": "ABCD"[number % 4],
            "category": "fine-grained perception",
            "l2_category": "object counting",
            "meta_info": {"source": "MMBench", "split": "val", "image_path": "x.jpg"},
        }
        for number in range(count)
    ]
