from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qmop.vtcbench.natural import gqa
from tests.qmop.vtcbench.natural.copies import as_json, cell, coded, faults, image, parquet, samples, tsv


def _questions() -> dict[str, dict[str, Any]]:
    return {
        "201307251": {"imageId": "n161313", "question": "Is it overcast?", "answer": "no", "fullAnswer": "No."},
        "201640614": {"imageId": "n235859", "question": "Who wears the dress?", "answer": "women"},
        "202225914": {"imageId": "n161313", "question": "What is left of it?", "answer": "fence"},
    }


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    rows = [{"id": name, **row, "fullAnswer": ""} for name, row in _questions().items()]
    parquet(tmp_path / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet", rows)
    pictures = [{"id": name, "image": cell(shade)} for shade, name in enumerate(("n235859", "other", "n161313"))]
    parquet(tmp_path / "testdev_balanced_images" / "testdev-00000-of-00001.parquet", pictures)
    return tmp_path


@pytest.fixture
def vlmevalkit(tmp_path: Path) -> Path:
    """The first row points to the last, which VLMEvalKit allows as well."""
    names = list(_questions())
    rows = [
        {"index": name, "image": names[2] if place == 0 else coded(place), "question": row["question"],
         "answer": row["answer"]}
        for place, (name, row) in enumerate(_questions().items())
    ]  # fmt: skip
    return tsv(tmp_path / "GQA_TestDev_Balanced.tsv", rows)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    image(tmp_path / "images" / "n161313.jpg", 1)
    image(tmp_path / "images" / "n235859.jpg", 2)
    return as_json(tmp_path / "questions1.2" / "testdev_balanced_questions.json", _questions())


@pytest.mark.parametrize("copy", ["hugging_face", "vlmevalkit", "official"])
def test_every_format_gives_the_same_questions(copy: str, request: pytest.FixtureRequest) -> None:
    found = samples(gqa.read(str(request.getfixturevalue(copy))))

    assert [one.id for one in found] == list(_questions())
    assert [one.answers for one in found] == [("no",), ("women",), ("fence",)]
    assert found[1].question == "Who wears the dress?\nAnswer the question using a single word or phrase."
    assert (found[0].scorer, found[0].choices) == ("exact_match", ())
    assert found[0].picture() == found[2].picture() != found[1].picture()


def test_questions_without_their_pictures_are_refused(hugging_face: Path) -> None:
    (hugging_face / "testdev_balanced_images" / "testdev-00000-of-00001.parquet").unlink()

    with pytest.raises(ValueError, match=r"holds no parquet file of pictures \(column image\)"):
        list(gqa.read(str(hugging_face)))


def test_a_picture_that_no_file_holds_is_a_fault(hugging_face: Path) -> None:
    parquet(hugging_face / "testdev_balanced_images" / "testdev-00000-of-00001.parquet",
            [{"id": "n161313", "image": cell()}])  # fmt: skip

    assert faults(gqa.read(str(hugging_face))) == {"201640614": "no_picture"}
