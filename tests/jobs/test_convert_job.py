from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs import cli
from qmop.loading import load


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """LLaVA's projector at the embedded base's size, as its authors name it."""
    shapes = {"0.weight": (160, 128), "0.bias": (160,), "2.weight": (160, 160), "2.bias": (160,)}
    state = {f"model.mm_projector.{name}": torch.full(shape, 0.5) for name, shape in shapes.items()}
    torch.save(state, tmp_path / "mm_projector.bin")
    return tmp_path / "mm_projector.bin"


def test_a_published_projector_becomes_a_checkpoint(published: Path, tmp_path: Path) -> None:
    output = tmp_path / "made"
    words = ["--projector", str(published), "--base", "tiny", "--output", str(output)]
    assert cli.run(["convert", *words, "--method", "average_pool", "--tokens", "16", "--dtype", "float16"]) == 0
    model, processor = load(output, dtype=None)
    assert processor.visual_tokens == 16
    assert model.dtype == torch.float16
    assert model.model.multi_modal_projector.connector.linear_2.weight.unique().tolist() == [0.5]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--base", "nowhere"], "nowhere holds no model"),
        (["--base", "tiny"], "does not fit tokenpacker"),
        (["--base", "tiny", "--method", "tokenpaker"], "did you mean 'tokenpacker'"),
        (["--base", "tiny", "--dtype", "int8"], "dtype"),
        (["--base", "tiny", "--tokens", "17", "--method", "average_pool"], "144, 36, 16, 9, 4, 1"),
    ],
)
def test_a_mistake_costs_one_sentence(
    capsys: pytest.CaptureFixture[str], published: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    asked = ["convert", "--projector", str(published), "--output", str(tmp_path / "made"), *words]
    assert cli.run(asked) == cli.MISTAKE
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("qmop: ")
    assert said in line
    assert not (tmp_path / "made").exists()
