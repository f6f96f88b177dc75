from __future__ import annotations

from pathlib import Path

import pytest

from jobs import cli
from qmop.vtcbench.suite import load_suite, read_shard, write_suite


def test_a_suite_is_copied_with_smaller_pictures(tmp_path: Path) -> None:
    full = write_suite(tmp_path / "full", seed=3, count=20, items_per_shard=10)
    command = ["suite", "shrink", "--suite", full.folder, "--output", str(tmp_path / "small"), "--tokens", "16"]

    assert cli.run(command) == 0
    small = load_suite(tmp_path / "small")
    assert (small.count, small.seed) == (20, 3)
    assert small.digest != full.digest
    pairs = [
        pair
        for one, other in zip(full.shards, small.shards, strict=True)
        for pair in zip(read_shard(full.folder, one), read_shard(small.folder, other), strict=True)
    ]
    assert all(one.item == other.item and one.image != other.image for one, other in pairs)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--tokens", "16", "--factor", "3"], "either tokens or factor"),
        ([], "either tokens or factor"),
        (["--tokens", "500"], "between 1 and the 144 patches"),
        (["--factor", "0.5"], "factor is 0.5"),
        (["--factor", "2", "--suite", "/nowhere"], "suite /nowhere holds no manifest.json"),
        (["--factor", "2", "--output", "/nowhere", "--suite", "/nowhere"], "output is the suite itself"),
    ],
)
def test_mistakes_cost_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    full = write_suite(tmp_path / "full", seed=3, count=1, items_per_shard=10)
    command = ["suite", "shrink", "--suite", full.folder, "--output", str(tmp_path / "small"), *more]

    assert cli.run(command) == cli.MISTAKE
    assert said in capsys.readouterr().err
