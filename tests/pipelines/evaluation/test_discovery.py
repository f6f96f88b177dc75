from pathlib import Path

import pytest

from pipelines.evaluation.discovery import discover
from pipelines.training.exports import CARD, WEIGHTS, export_name, publish
from qmop.tiny.assemble import tiny_model, tiny_processor


def export(folder: Path, step: int, seed: int = 0) -> Path:
    model = tiny_model("average_pool", 16)
    with_seed = {name: value + seed for name, value in model.state_dict().items()}
    uri = folder / "checkpoints" / export_name("average_pool", 16, "tune", step)
    facts = dict.fromkeys(("recipe_digest", "corpus_digest"), "x") | {
        "stage": "tune",
        "step": step,
        "compressor": "average_pool",
        "tokens": 16,
        "seed": seed,
    }
    publish(model, tiny_processor(16), with_seed, str(uri), facts)
    return uri


def test_a_run_gives_its_finished_checkpoints_and_names_the_others(tmp_path: Path) -> None:
    export(tmp_path, 1)
    export(tmp_path, 2, seed=1)
    unfinished, damaged = export(tmp_path, 3), export(tmp_path, 4)
    (unfinished / CARD).unlink()
    (damaged / WEIGHTS).write_bytes(b"short")
    found = discover([str(tmp_path)])
    assert [candidate.label for candidate in found.candidates] == [
        "average_pool-16-tune-000001",
        "average_pool-16-tune-000002",
    ]
    assert {candidate.budget for candidate in found.candidates} == {16}
    assert "not finished" in found.skipped[str(unfinished)]
    assert "damaged" in found.skipped[str(damaged)]


def test_labels_can_be_given_and_must_not_clash(tmp_path: Path) -> None:
    first, second = export(tmp_path / "a", 1), export(tmp_path / "b", 1, seed=1)
    with pytest.raises(ValueError, match="LABEL=PATH"):
        discover([str(first), str(second)])
    assert [c.label for c in discover([f"one={first}", f"two={second}"]).candidates] == ["one", "two"]


def test_a_path_to_nothing_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        discover([str(tmp_path / "nothing-here")])


def test_pickled_weights_are_not_taken(tmp_path: Path) -> None:
    tiny_model("average_pool", 16).config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(FileNotFoundError, match="only safetensors"):
        discover([str(tmp_path)])
