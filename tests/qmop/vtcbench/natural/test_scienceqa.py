from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qmop.vtcbench.natural import scienceqa
from qmop.vtcbench.natural.samples import Fault
from tests.qmop.vtcbench.natural.copies import as_json, cell, coded, faults, image, parquet, samples, tsv

ASKED = (
    "Context: The air was clear.\nWhich is it?\nA. weather\nB. climate\n"
    "Answer with the option's letter from the given choices directly."
)


def _row(**changed: Any) -> dict[str, Any]:
    row = {"question": "Which is it?", "choices": ["weather", "climate"], "answer": 1, "hint": "The air was clear.",
           "subject": "natural science"}  # fmt: skip
    return {**row, **changed}


def test_parquet_has_no_ids_so_rows_are_counted_over_the_files_of_a_split(tmp_path: Path) -> None:
    for number in range(2):
        rows = [_row(image=cell(number)), _row(image=None)]
        parquet(tmp_path / f"test-0000{number}-of-00002.parquet", rows)
    found = [one for one in scienceqa.read(str(tmp_path)) if not isinstance(one, Fault)]

    assert [one.id for one in found] == ["test/0", "test/2"]
    assert faults(scienceqa.read(str(tmp_path))) == {"test/1": "no_picture", "test/3": "no_picture"}
    assert (found[0].question, found[0].answers, found[0].choices) == (ASKED, ("B",), ("weather", "climate"))
    assert (found[0].task, found[0].scorer) == ("scienceqa/natural_science", "option_letter")


def test_the_official_folder_is_read_in_its_test_split(tmp_path: Path) -> None:
    problems = {"4": _row(image="image.png"), "5": _row(image=None), "6": _row(image="image.png", answer=2)}
    as_json(tmp_path / "problems.json", problems)
    as_json(tmp_path / "pid_splits.json", {"train": ["1"], "test": ["4", "5", "6"]})
    for name in ("4", "6"):
        image(tmp_path / "images" / "test" / name / "image.png")
    found = list(scienceqa.read(str(tmp_path)))

    assert samples(found[:1])[0].question == ASKED
    assert faults(found) == {"5": "no_picture", "6": "unknown_letter"}


def test_a_listed_question_must_be_there(tmp_path: Path) -> None:
    as_json(tmp_path / "problems.json", {"4": _row(image="image.png")})
    as_json(tmp_path / "pid_splits.json", {"test": ["4", "9"]})
    image(tmp_path / "images" / "test" / "4" / "image.png")

    with pytest.raises(ValueError, match=r"problems\.json has no question 9"):
        list(scienceqa.read(str(tmp_path)))
    as_json(tmp_path / "pid_splits.json", {"train": ["4"]})
    with pytest.raises(ValueError, match="lists no ids under 'test'"):
        list(scienceqa.read(str(tmp_path)))


def test_the_table_of_vlmevalkit(tmp_path: Path) -> None:
    row = {"index": 11, "image": coded(), "question": "Which is it?", "hint": "The air was clear.", "A": "weather",
           "B": "climate", "C": "", "D": "", "E": "", "answer": "B", "category": "c"}  # fmt: skip
    one = samples(scienceqa.read(str(tsv(tmp_path / "ScienceQA_TEST.tsv", [row]))))[0]

    assert (one.id, one.question, one.answers, len(one.choices)) == ("11", ASKED, ("B",), 2)
