"""LLaVA-1.5's published training data, fetched and laid out as its authors do; what is there is not fetched again."""

from __future__ import annotations

import http.client
import shutil
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from cluster.progress import Progress

_PIECE = 8 * 2**20
_PATIENCE_S = 60


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One zip file of pictures.

    Attributes:
        url: where its publisher keeps it.
        into: folder that it is unpacked in.
        gives: folder right in `into` that is there afterwards; it takes its name last, so that it stands for all.
    """

    url: str
    into: str
    gives: str


HUB = "https://huggingface.co/datasets/liuhaotian"
FILES = {
    "blip_laion_cc_sbu_558k.json": f"{HUB}/LLaVA-Pretrain/resolve/main/blip_laion_cc_sbu_558k.json",
    "llava_v1_5_mix665k.json": f"{HUB}/LLaVA-Instruct-150K/resolve/main/llava_v1_5_mix665k.json",
}
"""Annotations of both stages."""

ARCHIVES = (
    Archive(url=f"{HUB}/LLaVA-Pretrain/resolve/main/images.zip", into="align", gives="align/00000"),
    Archive(url="http://images.cocodataset.org/zips/train2017.zip", into="tune/coco", gives="tune/coco/train2017"),
    Archive(url="https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip", into="tune/gqa", gives="tune/gqa/images"),
    Archive(
        url="https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
        into="tune/textvqa",
        gives="tune/textvqa/train_images",
    ),
    Archive(url="https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip", into="tune/vg", gives="tune/vg/VG_100K"),
    Archive(
        url="https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip", into="tune/vg", gives="tune/vg/VG_100K_2"
    ),
)
OCR_VQA = "tune/ocr_vqa/images"
"""The one collection without an archive: its authors give a script that fetches book covers one by one."""


def fetch_all(folder: Path, progress: Progress) -> None:
    """Everything that can be fetched.

    Raises:
        FileNotFoundError: if OCR-VQA's pictures are missing; looked for first, since only a person can bring them.
        ConnectionError: if a download fails.
        ValueError: if an archive is damaged or lacks what it should hold.
    """
    if not (folder / OCR_VQA).is_dir():
        raise FileNotFoundError(
            f"{folder / OCR_VQA} is missing: OCR-VQA has no archive, so fetch its pictures with the script that "
            "LLaVA's page on data names, and put them there"
        )
    for name, url in FILES.items():
        if not (folder / name).is_file():
            _download(url, folder / name, progress)
    for archive in ARCHIVES:
        name = archive.gives.replace("/", "-")
        packed, scratch = folder / f"{name}.zip", folder / f".{name}"
        if not (folder / archive.gives).is_dir():
            if not packed.is_file():
                _download(archive.url, packed, progress)
            _unpack(packed, scratch, folder / archive.gives, progress)
        packed.unlink(missing_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)


def _unpack(packed: Path, scratch: Path, gives: Path, progress: Progress) -> None:
    """An archive's folders, which take their names when all of them are whole, `gives` as the last."""
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with zipfile.ZipFile(packed) as pictures:
            names = pictures.namelist()
            if not any(name.startswith(f"{gives.name}/") for name in names):
                raise ValueError(f"{packed} holds no {gives.name}: its publisher has changed it; unpack it by hand")
            for done, name in enumerate(names, 1):
                pictures.extract(name, scratch)
                progress.update(f"unpacking {packed.name}", done, len(names))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{packed} is damaged ({error}): delete it, so that it is fetched again") from error
    gives.parent.mkdir(parents=True, exist_ok=True)
    for child in sorted(scratch.iterdir(), key=lambda child: (child.name == gives.name, child.name)):
        if not (gives.parent / child.name).exists():
            child.rename(gives.parent / child.name)


def _download(url: str, target: Path, progress: Progress) -> None:
    """A file, which takes its name when it is whole."""
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE_S) as source, part.open("wb") as file:  # noqa: S310 - the URLs stand above
            size, done = int(source.headers.get("Content-Length") or 0), 0
            while piece := source.read(_PIECE):
                file.write(piece)
                done += len(piece)
                progress.update(f"fetching {target.name}", done, size, "bytes")
    except (OSError, http.client.HTTPException) as error:  # refused, torn off in the middle, or no room here
        sentence = f"{url} could not be fetched ({error}): run again, or put the file at {target}"
        raise ConnectionError(sentence) from error
    if size and done != size:
        raise ConnectionError(f"{url} ended after {done:,} of {size:,} bytes: run again")
    part.rename(target)
