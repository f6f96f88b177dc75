from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qmop.vtcbench.natural import textvqa
from tests.qmop.vtcbench.natural.copies import as_json, cell, coded, faults, image, parquet, samples, tsv

TEN = ["stop"] * 7 + ["halt", "stop sign", "STOP"]


def _rows() -> list[dict[str, Any]]:
    return [
        {"image_id": "00a", "question_id": 34602, "question": "what does the sign say?", "answers": TEN},
        {"image_id": "00b", "question_id": 34603, "question": "which brand?", "answers": ["acme"] * 10},
    ]


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    rows = [{**row, "image": cell(place)} for place, row in enumerate(_rows())]
    return parquet(tmp_path / "validation-00000-of-00003.parquet", rows)


@pytest.fixture
def vlmevalkit(tmp_path: Path) -> Path:
    rows = [
        {
            "index": row["question_id"],
            "image": coded(place),
            "question": row["question"],
            "answer": str(row["answers"]),
        }
        for place, row in enumerate(_rows())
    ]
    return tsv(tmp_path / "TextVQA_VAL.tsv", rows)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    for row in _rows():
        image(tmp_path / "train_images" / f"{row['image_id']}.jpg")
    return as_json(tmp_path / "TextVQA_0.5.1_val.json", {"dataset_name": "textvqa", "data": _rows()})


@pytest.mark.parametrize("copy", ["hugging_face", "vlmevalkit", "official"])
def test_every_format_gives_the_same_questions(copy: str, request: pytest.FixtureRequest) -> None:
    found = samples(textvqa.read(str(request.getfixturevalue(copy))))

    assert [one.id for one in found] == ["34602", "34603"]
    assert found[0].answers == tuple(TEN)
    assert found[0].question == "what does the sign say?\nAnswer the question using a single word or phrase."
    assert (found[0].scorer, found[0].choices, found[0].task) == ("vqa_soft", (), "textvqa")


def test_a_split_without_answers_is_all_faults(official: Path) -> None:
    as_json(official, {"data": [{key: row[key] for key in ("image_id", "question_id", "question")} for row in _rows()]})

    assert faults(textvqa.read(str(official))) == {"34602": "no_answers", "34603": "no_answers"}


def test_pictures_may_lie_elsewhere_and_must_lie_somewhere(official: Path, tmp_path: Path) -> None:
    (tmp_path / "train_images").rename(tmp_path / "other")

    assert len(samples(textvqa.read(str(official), str(tmp_path / "other")))) == 2
    with pytest.raises(FileNotFoundError, match=r"train_images is no folder: name it as images"):
        list(textvqa.read(str(official)))


def test_another_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="has no list of questions under 'data'"):
        list(textvqa.read(str(as_json(tmp_path / "other.json", {"questions": []}))))
    (tmp_path / "half.json").write_text('{"data": [')
    with pytest.raises(ValueError, match=r"half\.json is not valid JSON"):
        list(textvqa.read(str(tmp_path / "half.json")))
