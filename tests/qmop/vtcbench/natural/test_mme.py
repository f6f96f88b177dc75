from __future__ import annotations

from pathlib import Path

import pytest

from qmop.vtcbench.natural import mme
from tests.qmop.vtcbench.natural.copies import coded, faults, image, mme_rows, parquet, samples, tsv

NAMES = ["existence/0000/1", "existence/0000/2", "existence/0001/1", "existence/0001/2"]


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", mme_rows())
    return tmp_path


@pytest.fixture
def vlmevalkit(tmp_path: Path) -> Path:
    rows = [
        {
            "index": place,
            "image": coded(place) if place % 2 == 0 else str(place - 1),  # the second question points to the first
            "question": row["question"],
            "answer": row["answer"],
            "category": row["category"],
            "image_path": row["question_id"],
        }
        for place, row in enumerate(mme_rows())
    ]
    return tsv(tmp_path / "MME.tsv", rows)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Both of the release's layouts, and the leavings of its tool."""
    for number in range(2):
        image(tmp_path / "existence" / f"{number:04d}.jpg", number)
        lines = [f"{row['question']}\t{row['answer']}" for row in mme_rows()[2 * number : 2 * number + 2]]
        (tmp_path / "existence" / f"{number:04d}.txt").write_text("\n".join(lines) + "\n\n")
    image(tmp_path / "artwork" / "images" / "10002.jpg")
    (tmp_path / "artwork" / "questions_answers_YN").mkdir()
    (tmp_path / "artwork" / "questions_answers_YN" / "10002.txt").write_text("Is it art?\tYes\nIs it glass?\tNo\n")
    (tmp_path / "eval_tool").mkdir()
    (tmp_path / "eval_tool" / "existence.txt").write_text("0.jpg\tIs it?\tYes\tYes\n")
    return tmp_path


@pytest.mark.parametrize("copy", ["hugging_face", "vlmevalkit"])
def test_every_format_gives_the_same_questions(copy: str, request: pytest.FixtureRequest) -> None:
    found = samples(mme.read(str(request.getfixturevalue(copy))))

    assert [one.id for one in found] == NAMES
    assert [one.answers for one in found] == [("yes",), ("no",)] * 2
    assert found[0].question == "Is there a dog in this image?\nAnswer the question using a single word or phrase."
    assert {(one.task, one.scorer, one.choices) for one in found} == {("mme/existence", "yes_no", ("yes", "no"))}
    assert found[0].picture() == found[1].picture() != found[2].picture()


def test_the_official_folders_are_read_in_both_layouts(official: Path) -> None:
    found = samples(mme.read(str(official)))

    assert [one.id for one in found] == ["artwork/10002/1", "artwork/10002/2", *NAMES]
    assert found[0].question.startswith("Is it art?\n")
    assert found[2].key == "mme-existence_0000_1"


def test_an_answer_that_is_neither_yes_nor_no_is_a_fault(tmp_path: Path) -> None:
    rows = mme_rows(1)
    rows[1]["answer"] = "Maybe"
    file = parquet(tmp_path / "test.parquet", rows)

    assert faults(mme.read(str(file))) == {"existence/0000/2": "unknown_answer"}


def test_a_missing_column_is_named_with_the_file(tmp_path: Path) -> None:
    file = parquet(tmp_path / "test.parquet", [{k: v for k, v in row.items() if k != "category"} for row in mme_rows()])

    with pytest.raises(ValueError, match=r"test\.parquet has no column category, only question_id, image"):
        list(mme.read(str(file)))


def test_a_picture_that_is_not_there_is_named_when_it_is_wanted(official: Path) -> None:
    (official / "existence" / "0001.jpg").unlink()
    found = list(mme.read(str(official)))

    assert len(found) == 6
    with pytest.raises(ValueError, match=r"mme existence/0001/1: its picture .*0001\.jpg is missing"):
        found[4].picture()  # type: ignore[union-attr]
