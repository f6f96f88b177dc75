"""Where the embedded base lives."""

from __future__ import annotations

from pathlib import Path

TINY = "tiny"
_FOLDER = Path(__file__).parent / "weights"


def base_path(name: str | Path) -> Path:
    """The folder of a base: the embedded one for `tiny`, the path itself otherwise.

    Raises:
        FileNotFoundError: if the folder holds no model.
    """
    folder = _FOLDER if str(name) == TINY else Path(name)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no model: give a folder with config.json, or {TINY} for the embedded base"
        )
    return folder
