from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from pipelines.evaluation import tower_cache
from pipelines.evaluation.tower_cache import TowerCache

ROWS = {"patches": torch.arange(6.0).view(2, 3)}


def test_rows_come_back_by_picture_in_another_process_too(tmp_path: Path) -> None:
    room = TowerCache(tmp_path, 10_000).room("tower")
    assert room.add(["a", "b"], ["pa", "pb"], ROWS)
    other = TowerCache(tmp_path, 10_000).room("tower")
    other.refresh()
    assert other.holds("b", ["patches"])
    found = other.row("pb", ["patches"])
    assert found is not None
    assert torch.equal(found["patches"], ROWS["patches"][1:])
    assert other.row("pc", ["patches"]) is None


@pytest.mark.parametrize("error", [SafetensorError("No space left on device"), OSError(errno.ENOSPC, "full")])
def test_a_full_disk_is_told_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(tower_cache, "save_file", full)
    room = TowerCache(tmp_path, 10_000).room("tower")
    with caplog.at_level(logging.WARNING):
        assert not room.add(["a", "b"], ["pa", "pb"], ROWS)
        assert not room.add(["a", "b"], ["pa", "pb"], ROWS)
    assert len(caplog.records) == 1
    assert "without being remembered" in caplog.text
    assert not room.holds("a", ["patches"])
    assert list((tmp_path / "tower").iterdir()) == []


def test_old_rows_make_room_and_too_many_never_fit(tmp_path: Path) -> None:
    cache = TowerCache(tmp_path, 300)
    room = cache.room("tower")
    for number in range(5):
        assert room.add([f"a{number}"], [f"p{number}"], {"patches": torch.zeros(1, 3)})
    assert len(list((tmp_path / "tower").iterdir())) < 5
    assert not room.add(["b"], ["q"], {"patches": torch.zeros(1, 300)})
