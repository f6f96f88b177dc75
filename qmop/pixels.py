"""What a picture's pixels are for everybody who reads one: the trainer, the judge and the service."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MAX_ASPECT = 50
"""The longest side over the shortest of a picture that is read.

A sliver one pixel high is small in pixels, but resizing its short side to a tower's input, or making it square, would
blow it up to gigabytes.
"""

_ORIENTATION, _TURNS = 0x0112, range(2, 9)
"""Number of the EXIF field that says how a viewer turns a picture, and its values that do."""

_MOST_8, _MOST_16 = 0xFF, 0xFFFF
_DIMENSIONS = 3


def is_sliver(width: int, height: int) -> bool:
    """Whether a picture of so many pixels is narrower than 1 : `MAX_ASPECT`."""
    return max(width, height) > MAX_ASPECT * min(width, height)


def is_turned(image: Image.Image) -> bool:
    """Whether a viewer turns or mirrors the picture, as its EXIF or XMP says."""
    return image.getexif().get(_ORIENTATION, 1) in _TURNS


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as a viewer shows it: turned as its EXIF says, RGB, 8 bits.

    What is see-through is shown on white, as browsers do, and grey levels of 16 bits are scaled, not clipped.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return Image.fromarray(_scaled(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _scaled(levels_HW: np.ndarray) -> np.ndarray:
    """Levels of 16 bits in 8: the nearest multiple of 257, found in whole numbers as libpng does."""
    wide_HW = np.clip(levels_HW, 0, _MOST_16).astype(np.uint32)
    return ((wide_HW * _MOST_8 + _MOST_16 // 2) // _MOST_16).astype(np.uint8)


def shown(images: Any) -> Any:
    """Pictures as a viewer shows them, see `to_rgb`, in the lists and tuples in which they came.

    Names of files are opened. Arrays and tensors have no mode or orientation and stay as they are, and so does a
    picture that is shown already.

    Raises:
        ValueError: if a picture is a sliver.
    """
    if isinstance(images, list | tuple):
        return [shown(image) for image in images]
    if isinstance(images, str) and os.path.isfile(images):  # noqa: PTH113 - a picture in base64 is too long for a Path
        images = Image.open(images)
    if isinstance(images, Image.Image):
        _require_area(*images.size)
        return images if _is_shown(images) else to_rgb(images)
    if getattr(images, "ndim", 0) == _DIMENSIONS:
        _require_area(*sorted(images.shape)[1:])  # the channels are fewest
    return images


def _require_area(width: int, height: int) -> None:
    if is_sliver(width, height):
        raise ValueError(
            f"a picture has {width} x {height} pixels, which is narrower than 1 : {MAX_ASPECT}: cut it, or pad it "
            "towards a square"
        )


def _is_shown(image: Image.Image) -> bool:
    return image.mode == "RGB" and not is_turned(image) and not image.has_transparency_data
