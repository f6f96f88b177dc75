from __future__ import annotations

from pathlib import Path

import pytest

from qmop.vtcbench.natural import mmstar
from qmop.vtcbench.scorers import score
from tests.qmop.vtcbench.natural.copies import coded, faults, mmstar_rows, parquet, samples, tsv


def test_the_parquet_lists_options_in_its_questions(tmp_path: Path) -> None:
    found = samples(mmstar.read(str(parquet(tmp_path / "mmstar.parquet", mmstar_rows()))))

    assert [(one.id, one.answers) for one in found] == [("0", ("A",)), ("1", ("B",)), ("2", ("C",))]
    assert found[1].choices == ("one", "two, three", "four", "five")
    assert found[1].question == (
        "How many, 1?\nA. one\nB. two, three\nC. four\nD. five\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert found[0].task == "mmstar/fine-grained_perception"
    assert found[0].key == "mmstar-0"


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("What?\nOptions: A: x, B: y, C: z, D: w", ("x", "y", "z", "w")),
        ("What? Options: A: x, B: y", ("x", "y")),
        ("What?\nOptions: A: 1\nB: 2\nC: 3\nD: 4", ("1", "2", "3", "4")),
        ("What?\nOptions: A: a, B: b, B: c, D: d", ()),
        ("What?\nChoices:\n(A) 1\n(B) 2", ()),
        ("Which options: any?", ()),
    ],
)
def test_options_are_told_apart_only_where_that_is_sure(question: str, options: tuple[str, ...]) -> None:
    asked, found = mmstar.options_of(question)

    assert found == options
    assert asked == (question if not options else question[: question.lower().index("options")].strip())


def test_a_question_that_stays_whole_is_judged_by_its_letter(tmp_path: Path) -> None:
    rows = mmstar_rows(1)
    rows[0] |= {"question": "What?\nChoices:\n(A) 1\n(B) 2", "answer": "B"}
    one = samples(mmstar.read(str(parquet(tmp_path / "mmstar.parquet", rows))))[0]

    assert one.question.startswith("What?\nChoices:\n(A) 1\n(B) 2\nAnswer with")
    assert [score(said, one.item("SC")).value for said in ("B", "(B)", "A", "2")] == [1.0, 1.0, 0.0, 0.0]


def test_the_table_may_have_options_in_columns(tmp_path: Path) -> None:
    row = {"index": 7, "question": "How many?", "image": coded(), "answer": "b", "category": "math",
           "A": "1", "B": "2", "C": "3", "D": ""}  # fmt: skip
    one = samples(mmstar.read(str(tsv(tmp_path / "MMStar.tsv", [row]))))[0]

    assert (one.id, one.choices, one.answers) == ("7", ("1", "2", "3"), ("B",))


def test_a_letter_beyond_the_options_is_a_fault(tmp_path: Path) -> None:
    rows = mmstar_rows(2)
    rows[1]["answer"] = "F"

    assert faults(mmstar.read(str(parquet(tmp_path / "mmstar.parquet", rows)))) == {"1": "unknown_letter"}
