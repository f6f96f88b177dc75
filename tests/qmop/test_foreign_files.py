from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from qmop.foreign_files import read_tensors


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.bin", b"hello", r"p\.bin is damaged; it was not read"),
        ("p.bin", b"", r"p\.bin is damaged"),
        ("p.safetensors", b"hello", r"p\.safetensors is damaged"),
        ("p.gguf", b"hello", r"p\.gguf is of an unknown kind: expected \.bin, \.pt, \.pth or \.safetensors"),
    ],
)
def test_files_that_are_not_what_they_say_are_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_tensors(tmp_path / name)


def test_what_is_no_state_dict_or_not_there_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.bin")
    torch.save({"epoch": 3}, tmp_path / "numbers.bin")
    for name in ("list", "numbers"):
        with pytest.raises(ValueError, match=f"{name}.bin is no state dict: expected names with a tensor each"):
            read_tensors(tmp_path / f"{name}.bin")
    with pytest.raises(FileNotFoundError, match=r"none\.bin does not exist: give a file"):
        read_tensors(tmp_path / "none.bin")
    with pytest.raises(FileNotFoundError, match=r"holds no weights: expected one of model\.safetensors\.index\.json"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("content", ["{bad", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', b"\xff\xfe"])
def test_a_damaged_index_is_named(tmp_path: Path, content: str | bytes) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is damaged: .* weight_map .*fetch it again"):
        read_tensors(tmp_path)


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    torch.save({"a": torch.zeros(1)}, tmp_path / "outside.bin")
    (inside / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../outside.bin"}}))
    with pytest.raises(FileNotFoundError, match=r"inside/outside\.bin"):
        read_tensors(inside)
    shutil.move(tmp_path / "outside.bin", inside)
    assert read_tensors(inside).keys() == {"a"}
