"""States that are refused when they are loaded: by name, by all processes alike, and before an engine is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cluster.storage import StorageError
from pipelines.training import state_loading
from pipelines.training.state_loading import DamagedStateError, load_state
from pipelines.training.states import StateCard, read_state
from tests.pipelines.training.engines import engine, save, train, writer

PART = "part-00000-of-00001.safetensors"


@pytest.fixture
def state(tmp_path: Path) -> tuple[str, StateCard]:
    """A state of one process after three steps."""
    states, ours = writer(tmp_path, []), engine()
    train(ours, range(3))
    save(ours, states, 3)
    states.wait()
    uri = str(tmp_path / "tune-00000003")
    return uri, read_state(uri)


def _refuses(uri: str, card: StateCard, why: str) -> None:
    ours = engine()
    before = {name: value.clone() for name, value in ours.module.state_dict().items()}
    with pytest.raises(DamagedStateError, match=why):
        load_state(ours, uri, card)
    assert all(torch.equal(value, before[name]) for name, value in ours.module.state_dict().items())
    moments = [value for of_one in ours.optimizer.state.values() for value in of_one.values()]
    assert all(not value.any() for value in moments), "as before the first step"
    assert train(ours, range(2)) == train(engine(), range(2))


def test_a_file_of_the_right_size_with_one_bit_turned_is_refused_by_name(state: tuple[str, StateCard]) -> None:
    file = Path(state[0], PART)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert read_state(state[0]) == state[1], "card and sizes tell nothing of it"
    _refuses(*state, rf"tune-00000003 is damaged: the digest of {PART} is not the one in its card")


def test_a_file_that_is_gone_or_that_the_disk_cannot_read_is_refused(
    state: tuple[str, StateCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(uri: str) -> str:
        raise StorageError(f"{uri} cannot be used: Input/output error.")

    monkeypatch.setattr(state_loading, "sha256_of", unreadable)
    _refuses(*state, r"is damaged: .*safetensors cannot be used: Input/output error")
    monkeypatch.undo()
    Path(state[0], PART).unlink()
    _refuses(*state, r"is damaged: .*safetensors does not exist")


def test_an_s3_out_of_reach_says_nothing_about_a_state(
    state: tuple[str, StateCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(uri: str, _target: Path) -> str:
        raise StorageError(f"{uri} cannot be reached")

    monkeypatch.setattr(state_loading, "get_file", away)
    with pytest.raises(StorageError, match="cannot be reached"):
        load_state(engine(), "s3://bucket/run/states/tune-00000003", state[1])


def test_what_another_process_refuses_is_refused_here_with_its_words(
    state: tuple[str, StateCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_of(mine: Any) -> list[Any]:
        return [mine, "state x is damaged: of rank 1", "state x is damaged: of rank 2"]

    monkeypatch.setattr(state_loading, "from_all", all_of)
    _refuses(*state, "^state x is damaged: of rank 1$")


def test_a_state_of_another_model_is_a_mistake_and_not_damage(state: tuple[str, StateCard]) -> None:
    other = engine()
    other.module.append(nn.Linear(2, 2))
    other.optimizer = torch.optim.AdamW([p for p in other.module.parameters() if p.requires_grad])
    with pytest.raises(ValueError, match=r"does not fit this model: 3\.weight, 3\.bias missing or of") as refused:
        load_state(other, *state)
    assert not isinstance(refused.value, DamagedStateError)
