"""GQA: compositional questions about photographs with one short answer.

Read from Hugging Face parquet (files of questions with `id`, `imageId`, `question`, `answer`, and files of pictures
with `id`, `image`, anywhere below one folder), from VLMEvalKit's TSV, or from the official JSON
(`testdev_balanced_questions.json`) with a folder of `<imageId>.jpg`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from qmop.vtcbench.natural.jsons import image_folder, mapped_rows, read_json, require_fields
from qmop.vtcbench.natural.samples import Fault, RowError, Sample, checked_question, short_question
from qmop.vtcbench.natural.tables import (
    Found,
    Load,
    Row,
    columns_of,
    files_of,
    from_base64,
    from_file,
    from_struct,
    is_tsv,
    parquet_rows,
    samples_of,
    tsv_rows,
)

SOURCE = "gqa"
_NEEDED = ("imageId", "question", "answer")
_FOLDERS = ("images",)


def read(path: str, images: str | None = None) -> Iterator[Sample | Fault]:
    """The questions of a copy of GQA; ids are GQA's own, or the TSV's `index`.

    Of parquet, the pictures that are asked about are held in memory: 398 in the test-dev split.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if a column or field is missing or a file is damaged.
    """
    yield from samples_of(SOURCE, _rows(Path(path), images), _sample)


def _rows(path: Path, images: str | None) -> Iterator[Found]:
    if is_tsv(path):
        for row in tsv_rows(path, ("question", "answer")):
            yield str(row["index"]), row, partial(from_base64, row["image"])
    elif path.suffix == ".json":
        folder = image_folder(path, images, _FOLDERS)
        questions = mapped_rows(path, read_json(path))
        require_fields(path, next(iter(questions.values())), ("imageId", "question"))
        for name, row in questions.items():
            yield name, row, partial(from_file, folder / f"{row['imageId']}.jpg")
    else:
        yield from _parquet_rows(path)


def _parquet_rows(path: Path) -> Iterator[Found]:
    files = files_of(path, ".parquet")
    asking = [file for file in files if "imageId" in columns_of(file)]
    showing = [file for file in files if "image" in columns_of(file)]
    if not asking or not showing:
        lost = "questions (column imageId)" if not asking else "pictures (column image)"
        raise ValueError(f"{path} holds no parquet file of {lost}: give the folder of both, questions and pictures")
    wanted = {str(row["imageId"]) for file in asking for row in parquet_rows(file, ("imageId",))}
    pictures = {
        str(row["id"]): (row["image"], file.parent)
        for file in showing
        for row in parquet_rows(file, ("id", "image"))
        if str(row["id"]) in wanted
    }
    for file in asking:
        for row in parquet_rows(file, ("id", *_NEEDED)):
            yield str(row["id"]), row, partial(from_struct, *pictures.get(str(row["imageId"]), (None, path)))


def _sample(name: str, row: Row, load: Load) -> Sample:
    answer = str(row.get("answer") or "").strip()
    if not answer:
        raise RowError("no_answers", "it has no answer, as in the test split: take test-dev or validation")
    return Sample(
        source=SOURCE,
        id=name,
        question=short_question(checked_question(row["question"])),
        answers=(answer,),
        task=SOURCE,
        scorer="exact_match",
        load=load,
    )
