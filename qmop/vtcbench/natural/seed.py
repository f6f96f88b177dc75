"""SEED-Bench's picture part: questions with four options, in nine kinds.

Read from Hugging Face parquet (`question_id`, `image`, `question`, `choice_a` .. `choice_d`, `answer`, `data_type`),
from VLMEvalKit's TSV (`A` .. `D`), or from the official `SEED-Bench.json` with a folder of pictures named by `data_id`.
Questions about videos are passed over and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from qmop.vtcbench.natural.jsons import image_folder, listed_rows, read_json, require_fields
from qmop.vtcbench.natural.samples import Fault, RowError, Sample, checked_letter, checked_question, option_question
from qmop.vtcbench.natural.tables import (
    Found,
    Load,
    Row,
    from_base64,
    from_file,
    is_tsv,
    samples_of,
    shown_rows,
    tsv_rows,
)

SOURCE = "seed"
_OPTIONS = ("choice_a", "choice_b", "choice_c", "choice_d")
_NEEDED = ("question_id", "question", "answer", *_OPTIONS)
_LETTERS = ("A", "B", "C", "D")
_FOLDERS = ("SEED-Bench-image", "images")
_KINDS = {
    "1": "scene_understanding",
    "2": "instance_identity",
    "3": "instance_attributes",
    "4": "instance_location",
    "5": "instances_counting",
    "6": "spatial_relation",
    "7": "instance_interaction",
    "8": "visual_reasoning",
    "9": "text_understanding",
}


def read(path: str, images: str | None = None) -> Iterator[Sample | Fault]:
    """The questions of a copy of SEED-Bench; ids are `question_id`, or the TSV's `index` where it has no such column.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if a column or field is missing or a file is damaged.
    """
    yield from samples_of(SOURCE, _rows(Path(path), images), _sample)


def _rows(path: Path, images: str | None) -> Iterator[Found]:
    if is_tsv(path):
        for row in tsv_rows(path, ("question", "answer", *_LETTERS)):
            options = {option: row[letter] for option, letter in zip(_OPTIONS, _LETTERS, strict=True)}
            yield (
                str(row.get("question_id") or row["index"]),
                {**row, **options},
                partial(from_base64, row["image"]),
            )
    elif path.suffix == ".json":
        folder = image_folder(path, images, _FOLDERS)
        rows = listed_rows(path, read_json(path), "questions")
        require_fields(path, rows[0], ("data_id", "data_type", *_NEEDED))
        for row in rows:
            yield str(row["question_id"]), row, partial(from_file, folder / str(row["data_id"]))
    else:
        wanted = ("data_type", "question_type_id")
        yield from shown_rows(path, lambda row: str(row["question_id"]), ("image", *_NEEDED), wanted)


def _sample(name: str, row: Row, load: Load) -> Sample:
    if row.get("data_type", "image") != "image":
        raise RowError("video", "it asks about a video")
    options = tuple(str(row.get(option) or "") for option in _OPTIONS)
    kind = str(row.get("question_type_id") or "")
    kind = _KINDS.get(kind, kind) or str(row.get("category") or "").lower().replace(" ", "_")
    return Sample(
        source=SOURCE,
        id=name,
        question=option_question(checked_question(row["question"]), options),
        answers=(checked_letter(row["answer"], len(options)),),
        task=f"{SOURCE}/{kind}" if kind else SOURCE,
        scorer="option_letter",
        choices=options,
        load=load,
    )
