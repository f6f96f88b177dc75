"""Images under limits, and pictures as a viewer would show them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.corpus.images import check_image, decode_image
from pipelines.corpus.recipe import Limits
from pipelines.corpus.samples import BadSampleError

LIMITS = Limits()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header promises far more than follows."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def frames(count: int, kind: str) -> bytes:
    pictures = [Image.new("RGB", (8, 8), (number * 60 % 256, 0, 90)) for number in range(count)]
    return encoded(pictures[0], kind, save_all=True, append_images=pictures[1:])


def reason_of(data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(BadSampleError) as caught:
        check_image(data, limits)
    return caught.value.reason


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_three_formats_keep_their_extension(jpegs: list[bytes], kind: str, extension: str) -> None:
    picture = Image.open(io.BytesIO(jpegs[0]))
    assert check_image(encoded(picture, kind), LIMITS) == extension


def test_every_cut_of_a_jpeg_is_corrupt(jpegs: list[bytes]) -> None:
    data = jpegs[3]
    for share in (0.02, 0.3, 0.6, 0.9, 0.99):
        assert reason_of(data[: int(len(data) * share)]) == "corrupt_image"


@pytest.mark.parametrize("data", [b"", b"no image at all", b"\xff\xd8\xff\xe0"])
def test_what_is_no_image_is_corrupt(data: bytes) -> None:
    assert reason_of(data) == "corrupt_image"


def test_pixels_are_judged_by_the_header_alone() -> None:
    assert reason_of(huge_png(60_000, 60_000)) == "too_large"
    assert reason_of(huge_png(7_000, 6_000)) == "too_large"
    assert reason_of(huge_png(6_000, 6_000)) == "corrupt_image"


@pytest.mark.parametrize(("width", "height"), [(2_000_000, 1), (1, 2_000_000), (5_001, 100)])
def test_a_sliver_is_put_aside_by_its_header(width: int, height: int) -> None:
    assert reason_of(huge_png(width, height)) == "too_narrow"


def test_a_ribbon_of_one_to_fifty_is_a_picture() -> None:
    assert check_image(encoded(Image.new("RGB", (500, 10)), "PNG"), LIMITS) == "png"


def test_bytes_are_judged_before_the_header(jpegs: list[bytes]) -> None:
    data = jpegs[0]
    assert check_image(data, Limits(max_bytes=len(data))) == "jpg"
    assert reason_of(data, Limits(max_bytes=len(data) - 1)) == "too_large"


def test_animations_are_no_pictures() -> None:
    assert reason_of(frames(500, "GIF")) == "unsupported_image"
    assert reason_of(frames(3, "WEBP")) == "too_large"
    assert reason_of(frames(3, "PNG")) == "too_large"
    assert check_image(frames(3, "PNG"), Limits(max_frames=3)) == "png"


def test_a_camera_jpeg_with_a_preview_is_one_picture() -> None:
    assert check_image(frames(2, "MPO"), LIMITS) == "jpg"


def test_cmyk_becomes_rgb_of_the_same_colour() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert check_image(data, LIMITS) == "jpg"
    picture = decode_image(data)
    assert picture.mode == "RGB"
    red, green, blue = np.asarray(picture)[8, 8]
    assert red > 220
    assert max(green, blue) < 40


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    levels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    data = encoded(Image.fromarray(levels), "PNG")
    assert check_image(data, LIMITS) == "png"
    assert np.array_equal(np.asarray(decode_image(data))[..., 0].reshape(-1), np.arange(256))


def test_what_is_see_through_shows_white() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 4, 8))
    for kind in ("PNG", "WEBP"):
        picture = decode_image(encoded(image, kind, lossless=True))
        assert [picture.getpixel((x, 4)) for x in (0, 7)] == [(255, 0, 0), (255, 255, 255)]


def test_exif_turns_the_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.new("RGB", (40, 20))
    upright.paste((255, 0, 0), (0, 0, 20, 20))
    data = encoded(upright, "JPEG", exif=exif.tobytes(), quality=95)
    picture = decode_image(data)
    assert picture.size == (20, 40)
    assert np.asarray(picture)[5, 10, 0] > 200
    assert np.asarray(picture)[35, 10, 0] < 60
