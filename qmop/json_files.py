"""JSON files that other programs, or people, may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """The fields of a JSON object in a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything else, with its name.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the text, or of its encoding
        raise ValueError(f"{path} is no JSON ({error}): save or copy it again") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds a {type(fields).__name__}, not an object of fields: save or copy it again")
    return fields
