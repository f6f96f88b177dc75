"""MME: two yes/no questions about every picture, in fourteen categories.

Read from Hugging Face parquet (`question_id`, `image`, `question`, `answer`, `category`), from VLMEvalKit's TSV, or
from the official folders: per category, text files of `question<TAB>answer` lines beside their pictures, or in
`questions_answers_YN/` with the pictures in `images/`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from qmop.vtcbench.natural.samples import Fault, RowError, Sample, checked_question, short_question
from qmop.vtcbench.natural.tables import (
    Found,
    Load,
    Row,
    files_of,
    from_base64,
    is_tsv,
    samples_of,
    shown_rows,
    tsv_rows,
)

SOURCE = "mme"
_ASKED = ("question", "answer", "category")
_PROMPT = "please answer yes or no."
_QUESTIONS, _PICTURES = "questions_answers_YN", "images"
_SUFFIXES = (".jpg", ".png", ".jpeg")
_ANSWERS = ("yes", "no")
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def read(path: str, images: str | None = None) -> Iterator[Sample | Fault]:  # noqa: ARG001 - pictures come along
    """The questions of a copy of MME; ids are `category/picture/1` and `/2`, in every format.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if a column is missing or a file is damaged.
    """
    yield from samples_of(SOURCE, _numbered(_rows(Path(path))), _sample)


def _numbered(rows: Iterator[Found]) -> Iterator[Found]:
    """Rows that are named by their picture, with a number behind it."""
    numbers: Counter[str] = Counter()
    for picture, row, find in rows:
        numbers[picture] += 1
        yield f"{picture}/{numbers[picture]}", row, find


def _rows(path: Path) -> Iterator[Found]:
    """Category and name of the picture, the question's fields, and how to get the picture's reader."""
    if is_tsv(path):
        for row in tsv_rows(path, ("image_path", *_ASKED)):
            yield _name(row["category"], row["image_path"]), row, partial(from_base64, row["image"])
    elif path.is_dir() and not any(path.rglob("*.parquet")):
        yield from _folder_rows(path)
    else:
        yield from shown_rows(
            path, lambda row: _name(row["category"], row["question_id"]), ("question_id", "image", *_ASKED)
        )


def _folder_rows(root: Path) -> Iterator[Found]:
    for text in files_of(root, ".txt"):
        home = text.parent.parent if text.parent.name == _QUESTIONS else text.parent
        if home.name not in (*PERCEPTION, *COGNITION):  # notes, and results of the official tool
            continue
        pictures = home / _PICTURES if text.parent.name == _QUESTIONS else home
        for line in text.read_text(encoding="utf-8").splitlines():
            if not line.strip():
                continue
            question, _, answer = line.rpartition("\t")
            row = {"question": question, "answer": answer, "category": home.name}
            yield _name(home.name, text.stem), row, partial(_beside, pictures / text.stem)


def _beside(base: Path) -> Load:
    files = [base.with_name(base.name + suffix) for suffix in _SUFFIXES]
    return next((file for file in files if file.is_file()), files[0]).read_bytes


def _name(category: object, picture: object) -> str:
    """Category and picture, whatever folders and suffix a format puts around them."""
    name = PurePosixPath(str(picture)).name
    return f"{category}/{name.removesuffix(PurePosixPath(name).suffix) if name.endswith(_SUFFIXES) else name}"


def _sample(name: str, row: Row, load: Load) -> Sample:
    question, answer = checked_question(row["question"]), str(row["answer"]).strip().rstrip(".").lower()
    if answer not in _ANSWERS:
        raise RowError("unknown_answer", f"its answer is {row['answer']!r}, expected yes or no")
    at = question.lower().rfind(_PROMPT)
    return Sample(
        source=SOURCE,
        id=name,
        question=short_question(question[:at] if at > 0 else question),
        answers=(answer,),
        task=f"{SOURCE}/{row['category']}",
        scorer="yes_no",
        choices=_ANSWERS,
        load=load,
    )
