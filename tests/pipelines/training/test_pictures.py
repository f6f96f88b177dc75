"""Pixels that are the image processor's own, from every kind of picture that a shard may hold."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import skimage
import torch
from PIL import Image, ImageCms
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil, SiglipImageProcessorPil

from pipelines.corpus.images import decode_image
from pipelines.training import pictures
from pipelines.training.pictures import Geometry, Preparer, decode, geometry_of

SIDE = 112
LEVEL = 1 / 255 / 0.26
"""One of 255 levels, as CLIP normalises."""


def clip(**changes: Any) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(**({"size": {"shortest_edge": SIDE}, "crop_size": SIDE} | changes))


def llava(**changes: Any) -> LlavaImageProcessorPil:
    return LlavaImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE, **changes)


def siglip() -> SiglipImageProcessorPil:
    return SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    with Image.open(Path(skimage.__file__).parent / "data" / "coffee.png") as image:
        return image.convert("RGB")


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(processor: Any, *images: bytes) -> tuple[float, float]:
    """The largest and the mean difference from the processor's own pixels, in levels."""
    ours = Preparer(processor, threads=2)(images)
    own = processor([decode_image(data) for data in images], return_tensors="pt")["pixel_values"]
    assert ours.shape == own.shape
    assert ours.dtype == torch.float32
    gaps = (ours - own).abs() / LEVEL
    return gaps.max().item(), gaps.mean().item()


@pytest.mark.parametrize("size", [(320, 240), (241, 319), (200, 200), (301, 113), (SIDE, SIDE), (150, 100), (60, 45)])
@pytest.mark.parametrize(
    "processor", [clip(), llava(), llava(do_pad=True), siglip()], ids=["clip", "llava", "pad", "s"]
)
def test_pixels_are_the_processors_for_any_shape(
    photograph: Image.Image, processor: Any, size: tuple[int, int]
) -> None:
    assert geometry_of(processor) is not None
    largest, mean = difference(processor, saved(photograph.resize(size), quality=92))
    assert largest < 2.5
    assert mean < 0.05


KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "progressive": lambda image: saved(image, progressive=True),
    "4:4:4": lambda image: saved(image, subsampling=0),
    "grey": lambda image: saved(image.convert("L")),
    "rgb inside": lambda image: saved(image, keep_rgb=True),
    "profile": lambda image: saved(
        image, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    ),
    "cmyk": lambda image: saved(image.convert("CMYK")),
    "png": lambda image: saved(image, "PNG"),
    "transparent": lambda image: saved(image.convert("RGBA"), "PNG"),
    "webp": lambda image: saved(image, "WEBP"),
    "16 bits": lambda image: saved(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_comes_out_as_pillow_shows_it(photograph: Image.Image, kind: str) -> None:
    data = KINDS[kind](photograph.resize((300, 201)))
    geometry = geometry_of(clip())
    assert geometry is not None
    assert np.array_equal(decode(data, geometry), np.asarray(decode_image(data)))
    assert difference(clip(), data)[0] < 2.5


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("where", ["exif", "xmp"])
def test_a_turned_picture_is_turned(photograph: Image.Image, turn: int, where: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    said = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{turn}"/></x:xmpmeta>'
    options: dict[str, Any] = {"exif": exif} if where == "exif" else {"xmp": said.encode()}
    data = saved(photograph.resize((240, 160)), **options)
    picture = decode(data, Geometry(size=(SIDE,), crop=(SIDE, SIDE), fill=None, mode="bicubic"))
    assert picture.shape == ((160, 240, 3) if turn < 5 else (240, 160, 3))
    assert np.array_equal(picture, np.asarray(decode_image(data)))


def test_a_plain_jpeg_never_meets_pillow(photograph: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "decode_image", lambda _: pytest.fail("decoded by Pillow"))
    assert Preparer(clip(), threads=0)([saved(photograph)]).shape == (1, 3, SIDE, SIDE)


@pytest.mark.parametrize(
    ("size", "by"), [((2688, 2720), 8), ((2680, 2720), 4), ((680, 672), 2), ((670, 900), 1), ((675, 900), 1)]
)
def test_a_decoder_scales_where_three_times_the_target_is_left(size: tuple[int, int], by: int) -> None:
    assert Geometry(size=(SIDE,), crop=(SIDE, SIDE), fill=None, mode="bicubic").shrink(*size) == by
    assert Geometry(size=(SIDE,), crop=(SIDE, SIDE), fill=(0, 0, 0), mode="bicubic").shrink(*size) == 1


def test_scaling_while_decoding_stays_close(photograph: Image.Image) -> None:
    data = saved(photograph.resize((1200, 800)), quality=92)
    geometry = geometry_of(clip())
    assert geometry is not None
    assert decode(data, geometry).shape == (400, 600, 3)
    largest, mean = difference(clip(), data)
    assert largest < 8
    assert mean < 0.5


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    "processor", [clip(), llava(do_pad=True), clip(do_normalize=False)], ids=["clip", "pad", "other"]
)
def test_a_sliver_is_refused_before_it_grows(processor: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=r"12000 x 1 pixels, narrower than 1 : 50: prepare the corpus again"):
        Preparer(processor, threads=0)([saved(Image.new("RGB", (12_000, 1)), kind)])


def test_a_long_picture_is_made_square_within_bounds(photograph: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_LONGEST_PADDED", 1400)
    sides, real = [], np.full

    def noted(shape: tuple[int, ...], *given: Any, **named: Any) -> np.ndarray:
        sides.append(shape[0])
        return real(shape, *given, **named)

    monkeypatch.setattr(np, "full", noted)
    data = saved(photograph.resize((2710, 300)), "PNG")
    largest, mean = difference(llava(do_pad=True), data)
    assert max(sides) == 1355
    assert largest < 10
    assert mean < 0.3


def test_a_damaged_picture_is_an_error(photograph: Image.Image) -> None:
    data = saved(photograph)
    with pytest.raises(OSError, match="truncated"):
        Preparer(clip(), threads=1)([data, data[: len(data) // 2]])


class Unknown(CLIPImageProcessorPil):
    """A processor that somebody changed."""


@pytest.mark.parametrize(
    "processor",
    [
        Unknown(size={"shortest_edge": SIDE}, crop_size=SIDE),
        clip(resample=0),
        clip(do_normalize=False),
        clip(crop_size=SIDE + 20),
        clip(rescale_factor=1 / 127.5),
        clip(size={"shortest_edge": SIDE, "longest_edge": 300}),
    ],
    ids=["subclass", "nearest", "levels", "large crop", "other scale", "two edges"],
)
def test_a_processor_that_we_do_not_know_does_its_own_work(photograph: Image.Image, processor: Any) -> None:
    assert geometry_of(processor) is None
    assert difference(processor, saved(photograph), saved(photograph.rotate(90))) == (0.0, 0.0)


def test_the_number_of_threads_changes_nothing(photograph: Image.Image) -> None:
    data = [saved(photograph.resize((200 + 7 * number, 180))) for number in range(12)]
    alone = Preparer(clip(), threads=0)(data)
    assert torch.equal(alone, Preparer(clip(), threads=4)(data))
    assert not torch.equal(alone[0], alone[1])


def test_pictures_are_prepared_while_the_caller_goes_on(
    photograph: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading  # noqa: PLC0415

    may_decode, real = threading.Event(), simplejpeg.decode_jpeg

    def held(*given: Any, **named: Any) -> Any:
        assert may_decode.wait(20)
        return real(*given, **named)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", held)
    pixels = Preparer(clip(), threads=1).start([saved(photograph)])
    may_decode.set()  # would never be reached if `start` decoded
    assert pixels().shape == (1, 3, SIDE, SIDE)
