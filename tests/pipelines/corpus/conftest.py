"""Real photographs in the forms that people keep them in, small enough to write anew for every test."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage
import sklearn.datasets
from PIL import Image

from cluster.progress import Progress
from pipelines.corpus.manifest import Manifest
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
from tests.fixtures.s3_server import BUCKET

CROP = (240, 180)


def _photographs() -> list[Path]:
    in_skimage = Path(skimage.__file__).parent / "data"
    in_sklearn = Path(sklearn.datasets.__file__).parent / "images"
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
    return [*(in_skimage / name for name in names), in_sklearn / "china.jpg", in_sklearn / "flower.jpg"]


def _crops(photograph: Path) -> list[bytes]:
    """Three JPEG crops of one photograph."""
    crops = []
    with Image.open(photograph) as image:
        picture = image.convert("RGB")
    for number in range(3):
        left = number * (picture.width - CROP[0]) // 2
        buffer = io.BytesIO()
        box = (left, number * 20, left + CROP[0], number * 20 + CROP[1])
        picture.crop(box).save(buffer, format="JPEG", quality=90)
        crops.append(buffer.getvalue())
    return crops


@pytest.fixture(scope="session")
def jpegs() -> list[bytes]:
    """Eighteen JPEG photographs of 240 x 180 pixels."""
    return [crop for photograph in _photographs() for crop in _crops(photograph)]


class LlavaFolder:
    """An image folder with a LLaVA JSON beside it."""

    def __init__(self, root: Path, photographs: list[bytes]) -> None:
        self.annotations, self.images = root / "train.json", root / "images"
        (self.images / "nested").mkdir(parents=True)
        self.records: list[Any] = []
        for number, data in enumerate(photographs):
            name = f"nested/photo {number}.jpg" if number % 2 else f"photo.{number}.jpg"
            self.add(name, data, f"Words about picture {number}.")
        self.save()

    def add(self, name: str, data: bytes | None, answer: str, **changes: Any) -> None:
        """A record with its image; `data=None` leaves the file out, `changes` replace fields of the record."""
        if data is not None:
            (self.images / name).write_bytes(data)
        question = {"from": "human", "value": "<image>\nWhat is to be seen?"}
        turns = [question, {"from": "gpt", "value": answer}]
        self.records.append({"id": name, "image": name, "conversations": turns} | changes)

    def save(self) -> None:
        """Write the JSON."""
        self.annotations.write_text(json.dumps(self.records))

    def recipe(self, output: Path, **changes: Any) -> PrepareRecipe:
        """A recipe for this folder."""
        places: dict[str, Any] = {"annotations": str(self.annotations), "images": str(self.images)}
        fields = places | {"source": "llava", "output": str(output), "samples_per_shard": 4}
        return PrepareRecipe(**(fields | changes))


@pytest.fixture
def llava(tmp_path: Path, jpegs: list[bytes]) -> LlavaFolder:
    """Eighteen good records."""
    return LlavaFolder(tmp_path / "llava", jpegs)


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """A tar as other tools write it: times, owners and format as they come."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size, header.mtime = len(content), 1_700_000_000
            tar.addfile(header, io.BytesIO(content))


def write_img2dataset(folder: Path, stem: str, photographs: list[bytes], failed: int = 0) -> None:
    """One shard as img2dataset leaves it, the last `failed` rows without image."""
    folder.mkdir(parents=True, exist_ok=True)
    members, rows = [], []
    for number in range(len(photographs) + failed):
        good = number < len(photographs)
        row = {
            "url": f"https://example.org/{number}.jpg",
            "caption": f"Caption {number} of {stem}",
            "key": f"{stem}{number:04d}",
            "status": "success" if good else "failed_to_download",
            "error_message": None if good else "HTTP Error 404: Not Found",
        }
        rows.append(row)
        if good:
            described = row | {"width": CROP[0], "height": CROP[1], "exif": "{}"}
            key = row["key"]
            members += [(f"{key}.jpg", photographs[number]), (f"{key}.txt", str(row["caption"]).encode())]
            members.append((f"{key}.json", json.dumps(described).encode()))
    write_tar(folder / f"{stem}.tar", members)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{stem}.parquet")
    stats = {"count": len(rows), "successes": len(photographs), "failed_to_download": failed}
    (folder / f"{stem}_stats.json").write_text(json.dumps(stats))


@pytest.fixture
def img2dataset(tmp_path: Path, jpegs: list[bytes]) -> Path:
    """Two shards: seven pictures with two failed downloads, and five pictures."""
    folder = tmp_path / "img2dataset"
    write_img2dataset(folder, "00000", jpegs[:7], failed=2)
    write_img2dataset(folder, "00001", jpegs[7:12])
    return folder


@pytest.fixture
def lines() -> io.StringIO:
    """What progress has said."""
    return io.StringIO()


@pytest.fixture
def progress(lines: io.StringIO) -> Progress:
    """Progress into `lines`."""
    return Progress(stream=lines)


@pytest.fixture
def rendered(tmp_path: Path, progress: Progress) -> Callable[..., Manifest]:
    """Make a small rendered corpus: `rendered(count=60, samples_per_shard=8)`, in a folder of its own by `folder`."""

    def make(folder: str = "rendered", **changes: Any) -> Manifest:
        output = str(tmp_path / folder)
        fields: dict[str, Any] = {"source": "rendered", "output": output, "count": 60, "samples_per_shard": 8}
        return prepare(PrepareRecipe(**(fields | changes)), progress)

    return make


@pytest.fixture
def blank_captions(tmp_path: Path, jpegs: list[bytes]) -> Path:
    """One img2dataset shard whose four captions stand in the JSON, the text file, the parquet and nowhere."""
    folder = tmp_path / "captions"
    folder.mkdir()
    captions = [("from json", "x", "x"), ("", "from txt", "x"), (None, " ", "from parquet"), (None, "", None)]
    members, rows = [], []
    for number, (described, text, listed) in enumerate(captions):
        key = f"00000000{number}"
        members += [(f"{key}.jpg", jpegs[number]), (f"{key}.txt", text.encode())]
        members.append((f"{key}.json", json.dumps({"caption": described}).encode()))
        rows.append({"key": key, "status": "success", "caption": listed})
    write_tar(folder / "00000.tar", members)
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    return folder


@pytest.fixture
def bucket(s3_server: str) -> str:
    """The URI of an empty bucket that the environment leads to."""
    assert s3_server
    return f"s3://{BUCKET}"
