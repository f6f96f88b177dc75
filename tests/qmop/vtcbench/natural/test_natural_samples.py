from __future__ import annotations

import io

import pytest
from PIL import Image

from qmop.vtcbench.natural.samples import LETTERS, RowError, Sample, checked_letter, option_question
from tests.qmop.vtcbench.natural.copies import picture


def _sample(load: object = picture, name: str = "existence/a b.c/1") -> Sample:
    return Sample(
        source="mme", id=name, question="q", answers=("yes",), task="mme", scorer="yes_no", load=load,  # type: ignore[arg-type]
        choices=("yes", "no"),
    )  # fmt: skip


def test_keys_fit_a_tar_member_and_stay_apart() -> None:
    assert _sample().key == "mme-existence_a_b_c_1"
    long = {_sample(name=f"{'x' * 200}{number}").key for number in range(3)}
    assert len(long) == 3
    assert max(map(len, long)) < 90


def test_an_item_carries_all_of_the_sample() -> None:
    item = _sample().item("LD")

    assert (item.key, item.dimension, item.source, item.scorer) == (_sample().key, "LD", "mme", "yes_no")
    assert (item.chance, item.difficulty) == (0.5, None)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_of_a_known_kind_is_kept_as_it_is(kind: str) -> None:
    assert _sample(lambda: picture(3, kind)).picture() == picture(3, kind)


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_another_kind_becomes_png_with_the_same_pixels(kind: str) -> None:
    found = _sample(lambda: picture(3, kind)).picture()

    with Image.open(io.BytesIO(found)) as new, Image.open(io.BytesIO(picture(3, kind))) as old:
        assert new.format == "PNG"
        assert list(new.getdata()) == list(old.convert("RGB").getdata())


@pytest.mark.parametrize("data", [b"", b"no picture", picture(1)[:60]])
def test_a_damaged_picture_is_named(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"mme existence/a b\.c/1: its picture cannot be decoded"):
        _sample(lambda: data).picture()


def test_letters_beyond_the_options_are_refused() -> None:
    assert checked_letter(" c ", 3) == "C"
    for wrong in ("D", "", "AB", "1", None):
        with pytest.raises(RowError, match="expected one of A, B, C"):
            checked_letter(wrong, 3)


def test_every_option_has_a_letter() -> None:
    asked = option_question("Which?", [str(number) for number in range(len(LETTERS))])

    assert asked.count("\n") == len(LETTERS) + 1
    assert "\nJ. 9\n" in asked
