from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.corpus.images import decode_image
from pipelines.serving.errors import ApiError
from pipelines.serving.images import ImageLimits, read_data_url

LIMITS = ImageLimits(max_bytes=100_000, max_pixels=50_000)
Encode = Callable[..., str]


def decode_data_url(url: str, limits: ImageLimits, param: str | None = None) -> Image.Image:
    return read_data_url(url, limits, param).decode()


def refusal(url: str, limits: ImageLimits = LIMITS) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decode_data_url(url, limits, "messages.0.content.0.image_url")
    assert (caught.value.status, caught.value.param) == (400, "messages.0.content.0.image_url")
    assert caught.value.message.endswith(".")
    return caught.value


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


@pytest.mark.parametrize(("kind", "options"), [("png", {}), ("webp", {"lossless": True}), ("jpeg", {"quality": 100})])
def test_each_kind_comes_through(data_url: Encode, kind: str, options: dict[str, Any]) -> None:
    picture = decode_data_url(data_url(Image.new("RGB", (60, 30), (200, 40, 80)), kind, **options), LIMITS)
    assert (picture.mode, picture.size) == ("RGB", (60, 30))
    assert np.abs(np.asarray(picture, int) - (200, 40, 80)).max() <= 3


def test_a_rotated_photograph_is_set_upright(data_url: Encode) -> None:
    stored = Image.new("RGB", (40, 20), "black")
    stored.paste((255, 255, 255), (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show the stored picture a quarter clockwise
    shown = decode_data_url(data_url(stored, "png", exif=exif), LIMITS)
    assert shown.size == (20, 40)
    assert shown.getpixel((10, 2)) == (255, 255, 255)
    assert shown.getpixel((10, 38)) == (0, 0, 0)


def test_what_is_see_through_shows_white(data_url: Encode) -> None:
    assert decode_data_url(data_url(Image.new("RGBA", (8, 8), (255, 0, 0, 0))), LIMITS).getpixel((4, 4)) == (255,) * 3
    half = decode_data_url(data_url(Image.new("RGBA", (8, 8), (255, 0, 0, 128))), LIMITS).getpixel((4, 4))
    assert half[0] == 255
    assert 120 <= half[1] <= 135


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_the_service_sees_what_training_and_evaluation_see(data_url: Encode, kind: str) -> None:
    noise = np.random.default_rng(0)
    pictures = [Image.fromarray(noise.integers(0, 255, (24, 16, 4), np.uint8))]
    if kind == "png":
        pictures.append(Image.fromarray(noise.integers(0, 2**16, (24, 16), np.uint16)))
    for picture in pictures:
        url = data_url(picture, kind)
        seen = decode_data_url(url, LIMITS)
        trained_on = decode_image(base64.b64decode(url.partition(",")[2]))
        assert np.array_equal(np.asarray(seen), np.asarray(trained_on))


def test_sixteen_bits_are_scaled_not_clipped(data_url: Encode) -> None:
    grey = Image.fromarray(np.full((8, 8), 32_768, np.uint16))
    assert 126 <= decode_data_url(data_url(grey), LIMITS).getpixel((4, 4))[0] <= 129


@pytest.mark.parametrize(("mode", "kind"), [("L", "png"), ("P", "png"), ("1", "png"), ("CMYK", "jpeg")])
def test_every_mode_becomes_rgb(data_url: Encode, mode: str, kind: str) -> None:
    assert decode_data_url(data_url(Image.new("RGB", (9, 9), "white").convert(mode), kind), LIMITS).mode == "RGB"


def test_a_telephones_photograph_with_a_preview_behind_it_is_read(data_url: Encode) -> None:
    first = Image.new("RGB", (40, 20), "red")
    url = data_url(first, "mpo", "jpeg", save_all=True, append_images=[Image.new("RGB", (40, 20), "blue")])
    assert decode_data_url(url, LIMITS).getpixel((5, 5))[0] > 240


@pytest.mark.parametrize(
    "url", ["https://example.org/a.png", "http://169.254.169.254/x", "file:///etc/passwd", "a.png"]
)
def test_an_address_is_refused_with_the_reason_and_the_way_out(url: str) -> None:
    error = refusal(url)
    assert error.code == "unsupported_image_url"
    assert "fetches no addresses" in error.message
    assert "data:image/png;base64" in error.message


@pytest.mark.parametrize(
    "url",
    [
        "data:image/gif;base64,R0lG",
        "data:image/svg+xml;base64,PHN2",
        "data:text/html;base64,PGI+",
        "data:image/png,abc",
    ],
)
def test_another_kind_of_data_is_refused(url: str) -> None:
    assert refusal(url).code == "unsupported_image"


def test_the_declared_kind_must_be_the_real_one(data_url: Encode) -> None:
    assert refusal(data_url(Image.new("RGB", (9, 9)), "gif", "png")).code == "invalid_image"
    assert refusal(data_url(Image.new("RGB", (9, 9)), "jpeg", "png")).code == "invalid_image"


@pytest.mark.parametrize("payload", ["!!!!", "QUJ", "QUJD\nQUJD", "QUJD QUJD", "Zm9v-_==", "é"])
def test_loose_base64_is_refused(payload: str) -> None:
    assert refusal(f"data:image/png;base64,{payload}").code == "invalid_base64"


def test_an_empty_image_is_refused() -> None:
    assert "empty" in refusal("data:image/png;base64,").message


def test_too_many_bytes_are_refused_at_the_exact_cap(data_url: Encode) -> None:
    url = data_url(Image.effect_noise((64, 64), 80))
    size = len(base64.b64decode(url.partition(",")[2]))
    assert decode_data_url(url, ImageLimits(max_bytes=size, max_pixels=5000)).size == (64, 64)
    assert refusal(url, ImageLimits(max_bytes=size - 1, max_pixels=5000)).code == "image_too_large"


def test_pixels_are_counted_in_the_header_before_any_is_decoded(data_url: Encode) -> None:
    rest = [(b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    assert "10000x8000" in refusal(data_url(png(header(10_000, 8_000), *rest))).message
    assert refusal(data_url(png(header(60_000, 60_000), *rest))).code == "image_too_large"
    assert decode_data_url(data_url(Image.new("RGB", (250, 200))), LIMITS).size == (250, 200)
    assert refusal(data_url(Image.new("RGB", (251, 200)))).code == "image_too_large"


def test_a_sliver_that_resizing_would_blow_up_is_refused(data_url: Encode) -> None:
    assert decode_data_url(data_url(Image.new("RGB", (500, 10))), LIMITS).size == (500, 10)
    assert "crop" in refusal(data_url(Image.new("RGB", (510, 10)))).message


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_an_animation_is_refused(data_url: Encode, kind: str) -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    assert "animated" in refusal(data_url(frames[0], kind, save_all=True, append_images=frames[1:])).message


def test_a_picture_waits_encoded_and_is_refused_when_it_is_decoded_if_it_is_damaged_behind_its_header(
    data_url: Encode,
) -> None:
    whole = BytesIO()
    Image.effect_noise((200, 200), 80).save(whole, "png")
    cut = whole.getvalue()[:3000]
    waiting = read_data_url(data_url(cut), LIMITS, "messages.0")
    assert waiting.data == cut
    with pytest.raises(ApiError, match="not a readable png file") as caught:
        waiting.decode()
    assert (caught.value.status, caught.value.param) == (400, "messages.0")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_file_cut_in_the_middle_is_refused(data_url: Encode, kind: str) -> None:
    whole = BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(whole, kind)
    assert refusal(data_url(whole.getvalue()[: len(whole.getvalue()) // 2], declared=kind)).code == "invalid_image"


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["png", "jpeg", "webp"]), st.lists(st.tuples(st.integers(0, 600), st.binary(max_size=4))))
def test_a_damaged_file_is_a_picture_or_a_refusal_and_never_a_crash(
    data_url: Encode, kind: str, damage: list[tuple[int, bytes]]
) -> None:
    file = BytesIO()
    Image.effect_noise((16, 16), 80).convert("RGB").save(file, kind)
    data = bytearray(file.getvalue())
    for place, new in damage:
        data[place : place + len(new)] = new
    with suppress(ApiError):
        assert decode_data_url(data_url(bytes(data), declared=kind), LIMITS).mode == "RGB"
