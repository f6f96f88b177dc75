"""JSON annotations beside a folder of pictures, the form in which most sources come from their own makers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the annotations' file")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): fetch it again") from error


def listed_rows(path: Path, content: Any, field: str) -> list[dict[str, Any]]:
    """The list of objects under a field.

    Raises:
        ValueError: if there is none.
    """
    rows = content.get(field) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} has no list of questions under {field!r}: give the file as its makers publish it")
    return rows


def mapped_rows(path: Path, content: Any) -> dict[str, dict[str, Any]]:
    """An object of objects by id.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(content, dict) or not content or not all(isinstance(row, dict) for row in content.values()):
        raise ValueError(f"{path} is no object of questions by id: give the file as its makers publish it")
    return content


def require_fields(path: Path, row: dict[str, Any], needed: Sequence[str]) -> None:
    """Refuse a row that lacks a field.

    Raises:
        ValueError: naming file and fields.
    """
    if missing := [name for name in needed if name not in row]:
        raise ValueError(f"{path}: a question has no {', '.join(missing)}, only {', '.join(row)}: is it another file?")


def image_folder(annotations: Path, given: str | None, usual: Sequence[str]) -> Path:
    """The folder of the pictures: the given one, else the first of the usual ones beside the annotations or above.

    Raises:
        FileNotFoundError: if there is none.
    """
    candidates = (
        [Path(given)] if given else [home / name for home in annotations.absolute().parents[:2] for name in usual]
    )
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{annotations} needs its pictures, but {candidates[0]} is no folder: name it as images")
