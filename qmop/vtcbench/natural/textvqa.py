"""TextVQA: questions about text in photographs, ten people's answers each.

Read from Hugging Face parquet (`question_id`, `image`, `question`, `answers`), from VLMEvalKit's TSV (`answer` is a
list), or from the official JSON (`TextVQA_0.5.1_val.json`) with a folder of `<image_id>.jpg`. No OCR tokens are put
into the question: they would carry what the pictures are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from qmop.vtcbench.natural.jsons import image_folder, listed_rows, read_json, require_fields
from qmop.vtcbench.natural.samples import Fault, RowError, Sample, checked_question, short_question
from qmop.vtcbench.natural.tables import (
    Found,
    Load,
    Row,
    as_list,
    from_base64,
    from_file,
    is_tsv,
    samples_of,
    shown_rows,
    tsv_rows,
)

SOURCE = "textvqa"
_FOLDERS = ("train_images", "train_val_images/train_images", "images", "val_images")


def read(path: str, images: str | None = None) -> Iterator[Sample | Fault]:
    """The questions of a copy of TextVQA; ids are `question_id`, or the TSV's `index` where it has no such column.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if a column or field is missing or a file is damaged.
    """
    yield from samples_of(SOURCE, _rows(Path(path), images), _sample)


def _rows(path: Path, images: str | None) -> Iterator[Found]:
    if is_tsv(path):
        for row in tsv_rows(path, ("question", "answer")):
            answers = as_list(row["answer"] or "")
            yield (
                str(row.get("question_id") or row["index"]),
                {**row, "answers": answers},
                partial(from_base64, row["image"]),
            )
    elif path.suffix == ".json":
        folder = image_folder(path, images, _FOLDERS)
        rows = listed_rows(path, read_json(path), "data")
        require_fields(path, rows[0], ("question_id", "image_id", "question"))
        for row in rows:
            yield str(row["question_id"]), row, partial(from_file, folder / f"{row['image_id']}.jpg")
    else:
        needed = ("question_id", "image", "question", "answers")
        yield from shown_rows(path, lambda row: str(row["question_id"]), needed)


def _sample(name: str, row: Row, load: Load) -> Sample:
    answers = tuple(str(answer) for answer in row.get("answers") or () if str(answer).strip())
    if not answers:
        raise RowError("no_answers", "it has no answers, as in the test split: take the validation split")
    return Sample(
        source=SOURCE,
        id=name,
        question=short_question(checked_question(row["question"])),
        answers=answers,
        task=SOURCE,
        scorer="vqa_soft",
        load=load,
    )
