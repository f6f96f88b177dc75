"""Pictures down-sampled as far as a compressor compresses, and suites of them: what the hard subset is told by."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from PIL import Image

from qmop.pixels import to_rgb
from qmop.vtcbench.rendered import RenderedItem, suite_digest
from qmop.vtcbench.suite import MANIFEST, ShardInfo, SuiteManifest, packed

Write = Callable[[str, bytes], None]
"""Puts bytes under a name inside the suite's folder, in one act."""


def shrunk(picture: Image.Image, factor: float) -> Image.Image:
    """A picture down-sampled by a factor per side and brought back to its size, for towers of fixed resolution.

    The smaller one has floor(w / factor) x floor(h / factor) pixels, at least one; both ways bicubic, as in the
    protocol's code (which keeps the small picture and stores it as JPEG).
    """
    small = (max(1, math.floor(picture.width / factor)), max(1, math.floor(picture.height / factor)))
    rgb = to_rgb(picture)
    return rgb.resize(small, Image.Resampling.BICUBIC).resize(rgb.size, Image.Resampling.BICUBIC)


def factor_of(patches: int, tokens: int) -> float:
    """The factor per side that leaves as small a share of the pixels as the compressor leaves of the patches.

    Raises:
        ValueError: if there are more tokens than patches, or none.
    """
    if not 0 < tokens <= patches:
        raise ValueError(f"tokens is {tokens}, expected between 1 and the {patches} patches of the picture")
    return math.sqrt(patches / tokens)


def shrink_suite(
    suite: SuiteManifest, shards: Iterable[Sequence[RenderedItem]], factor: float, write: Write, *, folder: str
) -> SuiteManifest:
    """Write a copy of a suite whose pictures are down-sampled: the same keys and shards, another digest.

    Args:
        suite: the suite.
        shards: the items of each of its shards.
        factor: per side, above 1.
        write: puts bytes under a name, in one act.
        folder: what the new manifest calls its place.

    Raises:
        ValueError: if the factor is not above 1.
    """
    if factor <= 1:
        raise ValueError(f"factor is {factor:g}, but it must be above 1 to make pictures smaller")
    written: list[ShardInfo] = []

    def items() -> Iterator[RenderedItem]:
        for items in shards:
            part = [_shrunk_item(item, factor) for item in items]
            info, data = packed(len(written), part)
            write(info.url, data)
            written.append(info)
            yield from part

    digest = suite_digest(items())
    small = replace(suite, folder=folder, digest=digest, probe="", shards=tuple(written))
    write(MANIFEST, small.to_json().encode())
    return small


def _shrunk_item(rendered: RenderedItem, factor: float) -> RenderedItem:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(rendered.image)) as picture:
        shrunk(picture, factor).save(buffer, "PNG")
    return RenderedItem(item=rendered.item, image=buffer.getvalue())
