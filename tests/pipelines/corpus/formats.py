"""The same records in every form that a source may have, and faults that each form can hold."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus.recipe import PrepareRecipe

PROMPT = "Describe the picture."
FORMATS = ("llava", "img2dataset", "parquet", "folder", "webdataset")


@dataclass
class Record:
    """One picture with its caption; None leaves either out."""

    name: str
    image: bytes | None
    caption: str | None
    extension: str = "jpg"


@dataclass
class Member:
    """A member of a tar; `change` makes something odd of its header."""

    name: str
    data: bytes
    change: Callable[[tarfile.TarInfo], None] = field(default=lambda _: None)


def members_of(record: Record) -> list[Member]:
    texts = [] if record.caption is None else [Member(f"{record.name}.txt", record.caption.encode())]
    return texts if record.image is None else [Member(f"{record.name}.{record.extension}", record.image), *texts]


def write_members(path: Path, members: list[Member]) -> None:
    """A tar as other tools write it."""
    with tarfile.open(path, "w") as tar:
        for member in members:
            header = tarfile.TarInfo(member.name)
            header.size, header.mtime = len(member.data), 1_700_000_000
            member.change(header)
            tar.addfile(header, io.BytesIO(member.data))


def write(form: str, root: Path, records: list[Record]) -> dict[str, Any]:
    """Write records in a form, over two files where it has files of many; returns the recipe's fields below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    return {
        "llava": _llava,
        "img2dataset": _img2dataset,
        "parquet": _parquet,
        "folder": _folder,
        "webdataset": _webdataset,
    }[form](root, records)


def recipe(form: str, output: str, fields: dict[str, Any], **changes: Any) -> PrepareRecipe:
    basis: dict[str, Any] = {"source": form, "output": output, "samples_per_shard": 5}
    return PrepareRecipe(**(basis | fields | changes))


def _halves(records: list[Record]) -> list[list[Record]]:
    middle = 1 + len(records) // 2
    return [records[:middle], records[middle:]]


def _llava(root: Path, records: list[Record]) -> dict[str, Any]:
    (root / "images").mkdir()
    entries = []
    for record in records:
        name = f"{record.name}.{record.extension}"
        if record.image is not None:
            (root / "images" / name).write_bytes(record.image)
        turns = [{"from": "human", "value": f"<image>\n{PROMPT}"}, {"from": "gpt", "value": record.caption}]
        entries.append({"id": record.name, "image": name, "conversations": turns})
    (root / "train.json").write_text(json.dumps(entries))
    return {"annotations": str(root / "train.json"), "images": str(root / "images")}


def _img2dataset(root: Path, records: list[Record]) -> dict[str, Any]:
    for number, half in enumerate(_halves(records)):
        rows = [{"key": record.name, "status": "success", "caption": record.caption} for record in half]
        write_members(root / f"{number:05d}.tar", [member for record in half for member in members_of(record)])
        pq.write_table(pa.Table.from_pylist(rows), root / f"{number:05d}.parquet")
    return {"images": str(root)}


def _parquet(root: Path, records: list[Record]) -> dict[str, Any]:
    for number, half in enumerate(_halves(records)):
        rows = [
            {
                "id": record.name,
                "image": None if record.image is None else {"bytes": record.image, "path": f"{record.name}.jpg"},
                "caption": record.caption,
            }
            for record in half
        ]
        pq.write_table(pa.Table.from_pylist(rows), root / f"train-{number:05d}.parquet", row_group_size=3)
    return {"images": str(root)}


def _folder(root: Path, records: list[Record]) -> dict[str, Any]:
    for record in records:
        if record.image is not None:
            (root / f"{record.name}.{record.extension}").write_bytes(record.image)
        if record.caption is not None:
            (root / f"{record.name}.txt").write_text(record.caption)
    return {"images": str(root)}


def _webdataset(root: Path, records: list[Record]) -> dict[str, Any]:
    for number, half in enumerate(_halves(records)):
        write_members(root / f"{number:05d}.tar", [member for record in half for member in members_of(record)])
    return {"images": str(root)}
