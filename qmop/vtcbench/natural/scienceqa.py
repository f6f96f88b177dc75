"""ScienceQA: school questions with two to five options; those without a picture are passed over and counted.

Read from Hugging Face parquet (`image`, `question`, `choices`, `answer` as a number, `hint`), from VLMEvalKit's TSV
(`A` .. `E`, `answer` as a letter), or from the official folder of `problems.json` and `pid_splits.json` with pictures
in `images/<split>/<id>/image.png`, of which the test split is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from qmop.vtcbench.natural.jsons import image_folder, mapped_rows, read_json, require_fields
from qmop.vtcbench.natural.samples import (
    LETTERS,
    Fault,
    RowError,
    Sample,
    checked_letter,
    checked_question,
    option_question,
)
from qmop.vtcbench.natural.tables import (
    Found,
    Load,
    Row,
    files_of,
    from_base64,
    from_struct,
    is_tsv,
    parquet_rows,
    samples_of,
    split_of,
    tsv_rows,
)

SOURCE = "scienceqa"
_SPLIT = "test"
_LETTERS = ("A", "B", "C", "D", "E")
_FOLDERS = ("images",)
_FEWEST = 2


def read(path: str, images: str | None = None) -> Iterator[Sample | Fault]:
    """The questions of a copy of ScienceQA.

    Ids are the official ones of `problems.json` and the TSV's `index`; parquet has none: there they are split
    and row.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if a column or field is missing or a file is damaged.
    """
    yield from samples_of(SOURCE, _rows(Path(path), images), _sample)


def _rows(path: Path, images: str | None) -> Iterator[Found]:
    if is_tsv(path):
        for row in tsv_rows(path, ("question", "answer", "A", "B")):
            choices = [row[letter] for letter in _LETTERS if row.get(letter)]
            yield str(row["index"]), {**row, "choices": choices}, partial(from_base64, row["image"])
    elif path.suffix == ".json" or (path / "problems.json").is_file():
        yield from _problems(path if path.suffix == ".json" else path / "problems.json", images)
    else:
        rows: Counter[str] = Counter()
        for file in files_of(path, ".parquet"):
            split = split_of(file)
            for row in parquet_rows(file, ("image", "question", "choices", "answer"), ("hint", "subject")):
                name = f"{split}/{rows[split]}"
                rows[split] += 1
                yield name, row, partial(from_struct, row["image"], file.parent)


def _problems(path: Path, images: str | None) -> Iterator[Found]:
    problems = mapped_rows(path, read_json(path))
    ids = ids_of_split(path.with_name("pid_splits.json"))
    folder = image_folder(path, images, _FOLDERS)
    require_fields(path, next(iter(problems.values())), ("question", "choices", "answer", "image"))
    for name in ids:
        if name not in problems:
            raise ValueError(f"{path} has no question {name}, which pid_splits.json lists: fetch both anew")
        row = problems[name]
        yield name, row, partial(_beside, folder / _SPLIT / name, row)


def ids_of_split(path: Path) -> list[str]:
    """The ids of the test split.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it holds no such list.
    """
    splits = read_json(path)
    ids = splits.get(_SPLIT) if isinstance(splits, dict) else None
    if not isinstance(ids, list) or not ids:
        raise ValueError(f"{path} lists no ids under {_SPLIT!r}: give the file as its makers publish it")
    return [str(name) for name in ids]


def _beside(folder: Path, row: Row) -> Load:
    if not row.get("image"):
        raise RowError("no_picture", "it has no picture")
    return (folder / str(row["image"])).read_bytes


def _sample(name: str, row: Row, load: Load) -> Sample:
    choices = tuple(str(choice) for choice in row["choices"] or ())
    if len(choices) < _FEWEST:
        raise RowError("no_options", f"it has {len(choices)} options, expected at least {_FEWEST}")
    answer = row["answer"]
    if isinstance(answer, int) and 0 <= answer < len(LETTERS):
        answer = LETTERS[answer]
    subject = str(row.get("subject") or "").replace(" ", "_")
    return Sample(
        source=SOURCE,
        id=name,
        question=option_question(checked_question(row["question"]), choices, str(row.get("hint") or "")),
        answers=(checked_letter(answer, len(choices)),),
        task=f"{SOURCE}/{subject}" if subject else SOURCE,
        scorer="option_letter",
        choices=choices,
        load=load,
    )
