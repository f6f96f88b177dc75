"""Pictures as they come in: data URLs, checked before anything is decoded, and kept encoded until their turn.

An address is never fetched: a service that fetches what strangers name reaches into its own network.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from pipelines.serving.errors import ApiError, bad_request
from qmop.pixels import MAX_ASPECT, is_sliver, to_rgb

_HEAD = re.compile(r"data:image/(png|jpeg|webp);base64,", re.IGNORECASE)
_WAY_OUT = "send it as data:image/png;base64,... (or jpeg, or webp)"
# What Pillow's decoders are known to raise on damaged files.
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error, MemoryError)


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What one picture may cost: bytes after base64 decoding, and pixels (width times height)."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture whose header has passed; it waits encoded, because its pixels may take a thousand times the memory.

    Args:
        kind: png, jpeg or webp.
        data: the file.
        param: the request field that it came in, for errors.
    """

    kind: str
    data: bytes = field(repr=False)
    param: str | None = None

    def decode(self) -> Image.Image:
        """The upright RGB picture; slow and large, so call it when the model is about to look.

        Raises:
            ApiError: 400 if the file is damaged behind its header.
        """
        with _explained(self.kind, self.param), Image.open(BytesIO(self.data), formats=(self.kind,)) as image:
            return to_rgb(image)


def read_data_url(url: str, limits: ImageLimits, param: str | None = None) -> Picture:
    """Take a picture out of a data URL and check it as far as its header goes.

    Args:
        url: `data:image/png;base64,...`, or jpeg or webp.
        limits: what the picture may cost.
        param: the request field, for the error.

    Raises:
        ApiError: 400, naming what is wrong and the way out.
    """
    kind, data = _payload(url, limits, param)
    try:
        with _explained(kind, param), Image.open(BytesIO(data), formats=(kind,)) as image:
            _check_header(image, limits, param)
    except Image.DecompressionBombError as error:
        message = f"The image has far more than {limits.max_pixels} pixels: send it smaller."
        raise bad_request(message, code="image_too_large", param=param) from error
    return Picture(kind=kind, data=data, param=param)


@contextmanager
def _explained(kind: str, param: str | None) -> Iterator[None]:
    """Turn what Pillow raises on a file that it cannot read into a refusal."""
    try:
        yield
    except UnidentifiedImageError as error:
        message = f"The image is not a {kind} file: check it, and the type that its data URL names."
        raise bad_request(message, code="invalid_image", param=param) from error
    except _BROKEN as error:
        message = f"The image is not a readable {kind} file ({_brief(error)}): check that it opens on your side."
        raise bad_request(message, code="invalid_image", param=param) from error


def _payload(url: str, limits: ImageLimits, param: str | None) -> tuple[str, bytes]:
    head = _HEAD.match(url, 0, 64)
    if head is None:
        raise _refused_address(url, param)
    size = (len(url) - head.end()) // 4 * 3 - url[-2:].count("=")
    if size > limits.max_bytes:
        message = f"The image has {size} bytes, but at most {limits.max_bytes} are read: send it smaller."
        raise bad_request(message, code="image_too_large", param=param)
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"The image's base64 text is malformed ({_brief(error)}): use standard base64 with padding."
        raise bad_request(message, code="invalid_base64", param=param) from error
    if not data:
        raise bad_request(f"The image is empty: {_WAY_OUT}.", code="invalid_image", param=param)
    return head.group(1).lower(), data


def _refused_address(url: str, param: str | None) -> ApiError:
    if url[:5].lower() == "data:":
        message = f"The image's data URL starts with {url[:40]!r}, which is not a kind read here: {_WAY_OUT}."
        return bad_request(message, code="unsupported_image", param=param)
    message = (
        f"The image is given by address ({url[:60]!r}), and this service fetches no addresses, because one could "
        f"point into its own network: load the picture on your side and {_WAY_OUT}."
    )
    return bad_request(message, code="unsupported_image_url", param=param)


def _check_header(image: Image.Image, limits: ImageLimits, param: str | None) -> None:
    """Look at what the header says while no pixel has been decoded."""
    width, height = image.size
    if width * height > limits.max_pixels:
        message = f"The image is {width}x{height}, but at most {limits.max_pixels} pixels are read: send it smaller."
        raise bad_request(message, code="image_too_large", param=param)
    if is_sliver(width, height):
        message = f"The image is {width}x{height}, narrower than 1:{MAX_ASPECT}: crop it."
        raise bad_request(message, code="invalid_image", param=param)
    # Telephones append a preview or gain map to a JPEG (MPO); its first frame is the photograph.
    if image.format != "MPO" and getattr(image, "n_frames", 1) != 1:
        raise bad_request("The image is animated: send one of its frames.", code="invalid_image", param=param)


def _brief(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]
