"""Which pictures are read, and what is seen of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qmop.pixels import MAX_ASPECT, is_sliver, shown, to_rgb


@pytest.mark.parametrize("short", [1, 7, 894])
def test_a_sliver_is_what_is_narrower_than_the_limit_either_way(short: int) -> None:
    for long, narrow in ((short * MAX_ASPECT, False), (short * MAX_ASPECT + 1, True)):
        assert is_sliver(long, short) is narrow
        assert is_sliver(short, long) is narrow


def test_nothing_has_no_shape() -> None:
    assert is_sliver(3, 0)


def test_plain_pictures_keep_every_level() -> None:
    levels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    for opaque in (Image.fromarray(levels), Image.fromarray(levels).convert("RGBA")):
        seen = to_rgb(opaque)
        assert seen.mode == "RGB"
        assert np.array_equal(np.asarray(seen), levels)


def see_through() -> dict[str, Image.Image]:
    """Two pixels in every way of being see-through: the left one shows nothing of its black, the right one is red."""
    rgba = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    rgba.putpixel((1, 0), (255, 0, 0, 255))
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 0
    keyed = rgba.convert("RGB")
    keyed.info["transparency"] = (0, 0, 0)
    return {"RGBA": rgba, "P": palette, "RGB": keyed}


@pytest.mark.parametrize("mode", ["RGBA", "P", "RGB"])
def test_what_is_see_through_shows_white(mode: str) -> None:
    seen = to_rgb(see_through()[mode])
    assert [seen.getpixel((0, 0)), seen.getpixel((1, 0))] == [(255, 255, 255), (255, 0, 0)]


def test_what_is_half_see_through_is_mixed_with_white() -> None:
    assert to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 51))).getpixel((0, 0)) == (255, 204, 204)
    assert to_rgb(Image.new("LA", (1, 1), (0, 51))).getpixel((0, 0)) == (204, 204, 204)


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_sixteen_bits_become_the_nearest_of_eight(kind: type[np.generic]) -> None:
    levels = np.arange(2**16).astype(kind).reshape(256, 256)
    seen = np.asarray(to_rgb(Image.fromarray(levels)))
    assert seen.shape == (256, 256, 3)
    assert np.array_equal(seen[..., 0], np.round(np.arange(2**16) / 257).reshape(256, 256))
    assert np.array_equal(seen[..., 0], seen[..., 2])


def test_a_turned_picture_is_set_upright() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    image.getexif()[0x0112] = 6  # to be shown a quarter clockwise
    seen = to_rgb(image)
    assert seen.size == (1, 2)
    assert [seen.getpixel((0, 0)), seen.getpixel((0, 1))] == [(255, 255, 255), (255, 0, 0)]


def turned() -> Image.Image:
    """A picture that its EXIF turns by a quarter, as a file gives it."""
    image, buffer = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3)), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(buffer, "PNG", exif=exif)
    return Image.open(buffer)


def test_pictures_are_shown_in_the_lists_in_which_they_came() -> None:
    deep = Image.fromarray(np.full((2, 4), 40_000, dtype=np.uint16))
    clear = Image.new("RGBA", (2, 4), (0, 0, 0, 0))
    pictures = [turned(), [deep, clear]]
    first, (second, third) = shown(pictures)
    for told, source in ((first, turned()), (second, deep), (third, clear)):
        assert told.mode == "RGB"
        assert np.array_equal(np.asarray(told), np.asarray(to_rgb(source)))
    assert first.size == (2, 4)
    assert second.getpixel((0, 0)) == (156, 156, 156)  # 40,000 of 65,535 in 255
    assert third.getpixel((0, 0)) == (255, 255, 255)
    assert [once is again for once, again in zip(shown([first, second]), [first, second], strict=True)] == [True] * 2


def test_names_of_files_are_opened(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 4), (0, 0, 0, 0)).save(file := tmp_path / "clear.png")
    (told,) = shown([str(file)])
    assert (told.mode, told.size, told.getpixel((0, 0))) == ("RGB", (2, 4), (255, 255, 255))
    for other in ("https://example.org/a.png", "iVBORw0KGgo" * 2000):
        assert shown(other) == other


def test_arrays_stay_as_they_are() -> None:
    array = np.zeros((5, 7, 3), dtype=np.uint8)
    assert shown([array])[0] is array
    assert shown(None) is None


@pytest.mark.parametrize(
    "sliver",
    [Image.new("RGB", (1, 51)), np.zeros((200, 3, 3), dtype=np.uint8), np.zeros((3, 1, 200), dtype=np.uint8)],
)
def test_slivers_are_refused_before_anything_is_resized(sliver: object) -> None:
    with pytest.raises(ValueError, match="narrower than 1 : 50: cut it, or pad it"):
        shown([[sliver]])
