"""Going on from the newest state that can be loaded, whatever is wrong with those after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipelines.training import agreement
from pipelines.training.recipe import TrainRecipe, states_folder
from pipelines.training.resuming import find_state, resume
from pipelines.training.states import Found
from tests.pipelines.training.engines import engine, save, train, writer
from tests.pipelines.training.golden_losses import Notes

PART = "part-00000-of-00001.safetensors"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, without a connection to itself."""
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(agreement.dist, "broadcast_object_list", lambda _: None)


@pytest.fixture
def run(tmp_path: Path) -> tuple[TrainRecipe, list[float]]:
    """A run with states after steps 2, 4 and 6, and the losses of its steps 3 to 8."""
    recipe = TrainRecipe(corpus=str(tmp_path / "corpus"), output=str(tmp_path / "run"))
    states, ours, losses = writer(Path(states_folder(recipe)), [], keep=3), engine(), []
    for first in (0, 2, 4):
        losses += train(ours, range(first, first + 2))
        save(ours, states, first + 2)
    states.wait()
    losses += train(ours, range(6, 8))
    return recipe, losses[2:]


def _damage(recipe: TrainRecipe, step: int) -> str:
    """Turn a bit of a state, whose size stays; its address."""
    folder = Path(states_folder(recipe), f"tune-{step:08d}")
    data = bytearray((folder / PART).read_bytes())
    data[-1] ^= 1
    (folder / PART).write_bytes(data)
    return str(folder)


def _go_on(recipe: TrainRecipe, board: Notes) -> tuple[Any, int]:
    found = find_state(recipe, board, refused={}, told={})
    ours = engine()
    return ours, resume(ours, found, recipe, "tune", board)


def test_the_newest_state_is_loaded_and_told(run: tuple[TrainRecipe, list[float]]) -> None:
    board = Notes()
    ours, step = _go_on(run[0], board)
    assert step == 6
    assert [(note["kind"], note["name"]) for note in board.seen] == [("resumed", "tune-00000006")]
    assert board.seen[0]["bytes"] > 0
    assert train(ours, range(6, 8)) == run[1][4:]


def test_damaged_states_are_refused_by_name_once_and_the_one_before_is_used(
    run: tuple[TrainRecipe, list[float]],
) -> None:
    recipe, board = run[0], Notes()
    damaged = [_damage(recipe, 6), _damage(recipe, 4)]
    ours, step = _go_on(recipe, board)
    assert step == 2
    assert [(note["kind"], note["name"]) for note in board.seen] == [
        ("refused", damaged[0]),
        ("refused", damaged[1]),
        ("resumed", "tune-00000002"),
    ]
    assert "digest of part-00000-of-00001.safetensors is not" in board.seen[0]["why"]
    assert train(ours, range(2, 8)) == run[1]


def test_a_stage_without_a_state_that_can_be_loaded_begins_anew(run: tuple[TrainRecipe, list[float]]) -> None:
    recipe, board = run[0], Notes()
    for step in (2, 4, 6):
        _damage(recipe, step)
    ours, step = _go_on(recipe, board)
    assert step == 0
    assert [note["kind"] for note in board.seen] == ["refused"] * 3
    fresh = engine()
    assert all(torch.equal(a, b) for a, b in zip(ours.module.parameters(), fresh.module.parameters(), strict=True))


def test_another_stages_state_is_left_alone(run: tuple[TrainRecipe, list[float]]) -> None:
    recipe, board = run[0], Notes()
    found = find_state(recipe, board, refused={}, told={})
    assert resume(engine(), found, recipe, "align", board) == 0
    assert resume(engine(), Found(), recipe, "tune", board) == 0
    assert board.seen == []
