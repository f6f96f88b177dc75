from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qmop.vtcbench.natural import seed
from tests.qmop.vtcbench.natural.copies import as_json, cell, coded, faults, image, parquet, samples, tsv

ASKED = (
    "How many towels are there?\nA. One\nB. Two\nC. Three\nD. Four\n"
    "Answer with the option's letter from the given choices directly."
)


def _rows() -> list[dict[str, Any]]:
    options = {"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}
    image_row = {
        "answer": "A", **options, "data_id": "1454426_2591111986", "data_type": "image",
        "question": "How many towels are there?", "question_id": "101669", "question_type_id": 5,
    }  # fmt: skip
    return [image_row, {**image_row, "question_id": "8", "data_type": "video", "question_type_id": 10}]


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    """Pictures are lists here: a video has several frames."""
    pictures = [[cell(0)], [cell(1), cell(2)]]
    rows = [{**row, "image": shown} for row, shown in zip(_rows(), pictures, strict=True)]
    return parquet(tmp_path / "test-00000-of-00001.parquet", rows)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    image(tmp_path / "SEED-Bench-image" / "1454426_2591111986")
    content = {"question_type": {"Instances Counting": 5}, "questions": _rows()}
    return as_json(tmp_path / "SEED-Bench.json", content)


@pytest.mark.parametrize(("copy", "video"), [("hugging_face", "several_pictures"), ("official", "video")])
def test_the_picture_questions_are_kept(copy: str, video: str, request: pytest.FixtureRequest) -> None:
    path = str(request.getfixturevalue(copy))
    found = [one for one in seed.read(path) if one.id == "101669"]

    assert samples(found)[0].question == ASKED
    one = samples(found)[0]
    assert (one.answers, one.choices, one.scorer) == (("A",), ("One", "Two", "Three", "Four"), "option_letter")
    assert one.task == "seed/instances_counting"
    assert faults(seed.read(path)) == {"8": video}


def test_the_table_of_vlmevalkit(tmp_path: Path) -> None:
    row = {"index": 0, "question_id": "101669", "image": coded(), "question": "How many towels are there?",
           "A": "One", "B": "Two", "C": "Three", "D": "Four", "answer": "A",
           "category": "Instances Counting"}  # fmt: skip
    one = samples(seed.read(str(tsv(tmp_path / "SEEDBench_IMG.tsv", [row]))))[0]

    assert (one.id, one.question, one.task) == ("101669", ASKED, "seed/instances_counting")


@pytest.mark.parametrize("answer", ["E", "", "AB", None, "1"])
def test_an_unknown_letter_is_a_fault(tmp_path: Path, answer: str | None) -> None:
    rows = [{**_rows()[0], "image": [cell()]}, {**_rows()[0], "question_id": "2", "image": [cell()], "answer": answer}]
    path = str(parquet(tmp_path / "test.parquet", rows))

    assert faults(seed.read(path)) == {"2": "unknown_letter"}


def test_a_table_without_options_is_refused(tmp_path: Path) -> None:
    row = {"index": 0, "image": coded(), "question": "How many?", "answer": "A", "A": "One", "B": "Two"}

    with pytest.raises(ValueError, match=r"x\.tsv has no column C, D, only index"):
        list(seed.read(str(tsv(tmp_path / "x.tsv", [row]))))
