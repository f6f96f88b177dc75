"""What a picture's pixels are for everybody who reads one: the trainer, the judge and the service."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

MAX_ASPECT = 50
"""The longest side over the shortest of a picture that is read.

A sliver one pixel high is small in pixels, but resizing its short side to a tower's input, or making it square, would
blow it up to gigabytes.
"""

_MOST_8, _MOST_16 = 0xFF, 0xFFFF


def is_sliver(width: int, height: int) -> bool:
    """Whether a picture of so many pixels is narrower than 1 : `MAX_ASPECT`."""
    return max(width, height) > MAX_ASPECT * min(width, height)


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
