"""Encoded images: checked under limits on the way into a shard, decoded to RGB on the way out."""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

from pipelines.corpus.recipe import Limits
from pipelines.corpus.samples import BadSampleError
from qmop.pixels import MAX_ASPECT, is_sliver, to_rgb

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
"""Pillow's format names that a shard keeps as they are. MPO is a camera's JPEG with a preview behind it."""


def check_image(data: bytes, limits: Limits) -> str:
    """Open an image under limits and decode it to its end.

    Returns:
        The file name extension that fits its real format: jpg, png or webp.

    Raises:
        BadSampleError: `too_large`, `too_narrow`, `unsupported_image` or `corrupt_image`.
    """
    if len(data) > limits.max_bytes:
        raise BadSampleError("too_large", f"{len(data):,} bytes, the limit is {limits.max_bytes:,}")
    with warnings.catch_warnings():
        # Pillow's own alarm starts above our limit and would only repeat it.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = _open(data)
        _check_header(image, limits)
        _load(image)
    return EXTENSIONS[str(image.format)]


def decode_image(data: bytes) -> Image.Image:
    """The picture as a viewer would show it, see `qmop.pixels.to_rgb`."""
    return to_rgb(Image.open(io.BytesIO(data)))


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise BadSampleError("too_large", str(error)) from error
    except UnidentifiedImageError as error:
        raise BadSampleError("corrupt_image", f"no image format known, {len(data):,} bytes") from error
    except Exception as error:  # decoders raise whatever they like on hostile bytes
        raise BadSampleError("corrupt_image", f"{type(error).__name__}: {error}") from error


def _check_header(image: Image.Image, limits: Limits) -> None:
    if image.format not in EXTENSIONS:
        raise BadSampleError("unsupported_image", f"format {image.format}, expected JPEG, PNG or WebP")
    width, height = image.size
    if width * height > limits.max_pixels:
        raise BadSampleError("too_large", f"{width} x {height} pixels, the limit is {limits.max_pixels:,}")
    if is_sliver(width, height):
        raise BadSampleError("too_narrow", f"{width} x {height} pixels, narrower than 1 : {MAX_ASPECT}: crop it")
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > limits.max_frames:
        raise BadSampleError("too_large", f"{frames} frames, the limit is {limits.max_frames}")


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as error:  # decoders raise whatever they like on hostile bytes
        raise BadSampleError("corrupt_image", f"{type(error).__name__}: {error}") from error
