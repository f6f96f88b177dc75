from __future__ import annotations

from pathlib import Path

import pytest

from qmop.json_files import read_object


def test_fields_are_read(tmp_path: Path) -> None:
    (file := tmp_path / "config.json").write_text('{"model_type": "qmop", "ä": [1]}', encoding="utf-8")
    assert read_object(file) == {"model_type": "qmop", "ä": [1]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{broken", r"config\.json is no JSON \(.*: save or copy it again"),
        (b"", r"config\.json is no JSON"),
        (b'{"a": "\xff"}', r"config\.json is no JSON"),
        (b"[]", r"config\.json holds a list, not an object of fields: save or copy it again"),
        (b"null", r"config\.json holds a NoneType"),
    ],
)
def test_anything_else_is_named_with_its_file(tmp_path: Path, content: bytes, said: str) -> None:
    (file := tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_object(file)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "none.json")
