"""Agreement between training processes."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch.distributed as dist

from pipelines.training.agreement import from_all, from_rank_zero


def _agree(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    made = from_rank_zero(lambda: [rank, "as seen first"])
    (folder / f"{rank}.txt").write_text(f"{made} {from_rank_zero(lambda: None)} {from_all(('of', rank))}")
    dist.destroy_process_group()


@pytest.mark.timeout(120)
def test_every_process_gets_what_the_first_one_made_and_what_each_has(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_agree, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        assert process.exitcode == 0
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == [
        "[0, 'as seen first'] None [('of', 0), ('of', 1)]"
    ] * 2


def test_a_process_by_itself_agrees_with_itself() -> None:
    assert from_all("mine") == ["mine"]
