"""Model folders without a card, and what may be missing of them; the weights are as small as the format allows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.evaluation.wholeness import UnfinishedError, require_whole


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json", "processor_config.json"):
        (tmp_path / name).write_text("{}")
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


def test_a_whole_folder_is_taken_and_any_shorter_or_longer_file_is_not(folder: Path) -> None:
    require_whole(str(folder), asking=False)
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    for size in range(len(data)):
        weights.write_bytes(data[:size])
        with pytest.raises(UnfinishedError, match=r"is not whole: its model\.safetensors"):
            require_whole(str(folder), asking=False)
    weights.write_bytes(data + b"\0")
    with pytest.raises(UnfinishedError, match=f"has {len(data) + 1} of the {len(data)} bytes"):
        require_whole(str(folder), asking=False)


@pytest.mark.parametrize("header", [b"[]", b'{"a": 1}', b'{"a": {"data_offsets": []}}', b"\xff{}"])
def test_nonsense_in_the_header_is_no_accident_of_ours(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UnfinishedError, match="cannot be read"):
        require_whole(str(folder), asking=False)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json", "processor_config.json"])
def test_what_is_missing_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UnfinishedError, match=rf"has no {name}.*: copy it again"):
        require_whole(str(folder), asking=False)


def test_who_reads_questions_needs_words_for_them(folder: Path) -> None:
    with pytest.raises(UnfinishedError, match="no query_tokenizer/tokenizer_config"):
        require_whole(str(folder), asking=True)
