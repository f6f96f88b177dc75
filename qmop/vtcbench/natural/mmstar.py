"""MMStar: 1,500 questions that cannot be answered without the picture, with four options.

Read from its parquet (`index`, `question`, `image`, `answer`, `category`, `l2_category`), whose questions list their
options themselves, or from its TSV, which may have them in columns `A` .. `D` as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from qmop.vtcbench.natural.samples import (
    Fault,
    Sample,
    checked_letter,
    checked_question,
    lettered,
    option_question,
)
from qmop.vtcbench.natural.tables import (
    Found,
    Load,
    Row,
    from_base64,
    is_tsv,
    samples_of,
    shown_rows,
    tsv_rows,
)

SOURCE = "mmstar"
_NEEDED = ("question", "answer", "category")
_LETTERS = ("A", "B", "C", "D")
_LIST = re.compile(r"\bOptions:\s*(?=A\s*:)", re.IGNORECASE)
_OPTION = re.compile(r"(?:^|,\s*|\n\s*)([A-D])\s*:\s*")


def read(path: str, images: str | None = None) -> Iterator[Sample | Fault]:  # noqa: ARG001 - pictures come along
    """The questions of a copy of MMStar; ids are its `index`.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if a column is missing or a file is damaged.
    """
    yield from samples_of(SOURCE, _rows(Path(path)), _sample)


def options_of(question: str) -> tuple[str, tuple[str, ...]]:
    """A question without its options, and the options; the question as it is and none, where they cannot be told apart.

    MMStar writes `... Options: A: one, B: two, C: three, D: four`; where a letter is missing or comes twice, an option
    may hold one itself, and nothing is taken apart.
    """
    found = _LIST.search(question)
    if found is None:
        return question, ()
    parts = _OPTION.split(question[found.end() :].strip())
    letters, options = tuple(parts[1::2]), tuple(option.strip() for option in parts[2::2])
    if parts[0] or not options or letters != _LETTERS[: len(letters)]:
        return question, ()
    return question[: found.start()].strip(), options


def _rows(path: Path) -> Iterator[Found]:
    if is_tsv(path):
        for row in tsv_rows(path, _NEEDED):
            yield str(row["index"]), row, partial(from_base64, row["image"])
    else:
        yield from shown_rows(path, lambda row: str(row["index"]), ("index", "image", *_NEEDED))


def _sample(name: str, row: Row, load: Load) -> Sample:
    question, options = options_of(checked_question(row["question"]))
    columns = tuple(str(row[letter]) for letter in _LETTERS if row.get(letter))
    options = options or columns
    choices = options or _LETTERS
    return Sample(
        source=SOURCE,
        id=name,
        question=option_question(question, options) if options else lettered(question),
        answers=(checked_letter(row["answer"], len(choices)),),
        task=f"{SOURCE}/{str(row['category']).replace(' ', '_')}",
        scorer="option_letter",
        choices=choices,
        load=load,
    )
