"""A corpus of JPEGs of 640 x 480, each different, cut from the photographs that scikit-image and scikit-learn bring."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage
import sklearn.datasets
from PIL import Image

from cluster import storage
from pipelines.corpus.manifest import NAME, Manifest, Shard, corpus_digest, keys_digest
from pipelines.corpus.samples import Sample, sample_key
from pipelines.corpus.shards import digests, encode_shard

SIZE, QUALITY, PER_SHARD = (640, 480), 95, 128
_IN_SKIMAGE = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
)
_IN_SKLEARN = ("china.jpg", "flower.jpg")


def photographs() -> list[Image.Image]:
    """The originals."""
    skimage_data, sklearn_data = (
        Path(skimage.__file__).parent / "data",
        Path(sklearn.datasets.__file__).parent / "images",
    )
    paths = [*(skimage_data / name for name in _IN_SKIMAGE), *(sklearn_data / name for name in _IN_SKLEARN)]
    return [Image.open(path).convert("RGB") for path in paths]


def variants(count: int) -> Iterator[bytes]:
    """JPEGs: a seeded crop of 70 to 100 %, flipped or not, with every channel made a little lighter or darker."""
    originals, draws = photographs(), np.random.default_rng(0)
    for number in range(count):
        original = originals[number % len(originals)]
        share = draws.uniform(0.7, 1.0)
        width = int(min(original.width, original.height * SIZE[0] / SIZE[1]) * share)
        height = width * SIZE[1] // SIZE[0]
        left, top = (int(draws.integers(0, room + 1)) for room in (original.width - width, original.height - height))
        picture = original.resize(SIZE, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        if draws.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        gains = draws.uniform(0.9, 1.0, 3)
        picture = picture.point([int(level * gain) for gain in gains for level in range(256)])
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=QUALITY)
        yield buffer.getvalue()


def write_corpus(folder: str, count: int) -> Manifest:
    """Shards and manifest."""
    shards, samples = [], []
    for number, image in enumerate(variants(count)):
        turns = [{"role": "user", "text": "What is to be seen?"}, {"role": "assistant", "text": f"Variant {number}."}]
        record = {"id": str(number), "messages": turns, "image": True, "origin": {"number": number}}
        samples.append(Sample(key=sample_key(number, "photo"), images=(image,), extensions=("jpg",), record=record))
        if len(samples) == PER_SHARD or number + 1 == count:
            shards.append(_write(folder, len(shards), samples))
            samples = []
    return listed(folder, shards)


def _write(folder: str, number: int, samples: list[Sample]) -> Shard:
    url, data = f"corpus-{number:06d}.tar", encode_shard(samples)
    storage.write_atomic(storage.join(folder, url), data)
    sha256, md5sum = digests(data)
    keys = keys_digest(sample.key for sample in samples)
    return Shard(url=url, nsamples=len(samples), filesize=len(data), sha256=sha256, md5sum=md5sum, keys_sha256=keys)


def listed(folder: str, shards: list[Shard]) -> Manifest:
    """The manifest of shards, written beside them."""
    total = sum(shard.nsamples for shard in shards)
    manifest = Manifest(
        folder=folder,
        shards=tuple(shards),
        input=total,
        written=total,
        quarantined={},
        source="photographs",
        plan="",
        digest=corpus_digest(tuple(shards)),
    )
    storage.write_atomic(storage.join(folder, NAME), manifest.to_json())
    return manifest
