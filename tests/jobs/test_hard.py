from __future__ import annotations

from pathlib import Path

import pytest

from jobs import cli, hard
from qmop.vtcbench.items import Item
from qmop.vtcbench.records import Record, judge


def records(label: str, right: set[int]) -> list[Record]:
    return [
        judge(
            Item(key=str(number), question="q", answers=("yes",), dimension="GU", task="t", choices=("yes", "no")),
            "yes" if number in right else "no",
            checkpoint=label, label=label, method="m", budget=1, visual_tokens=1, suite_digest="d", shard="s",
        )
        for number in range(10)
    ]  # fmt: skip


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, str]:
    full, small = str(tmp_path / "full"), str(tmp_path / "small")
    kept = {
        full: [*records("uncompressed", set(range(8))), *records("qmop", {0, 1, 4, 9})],
        small: records("uncompressed", {0, 1, 2, 8}),
    }
    monkeypatch.setattr(hard, "read_index", lambda store: (kept[store], ""))
    return full, small


def test_the_table_is_printed_and_kept(stores: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    full, small = stores

    assert cli.run(["report", "hard", "--results", full, "--downsampled", small]) == 0
    table = capsys.readouterr().out.strip()
    assert table == (Path(full) / "hard.md").read_text().strip()
    assert table.startswith(
        "10 items: 5 hard (right, but wrong when down-sampled), 3 easy (right both ways), 2 left out"
    )
    assert "| uncompressed | 100.0 | " in table
    assert "| qmop | 20.0 | " in table
    assert table.endswith("| 66.7 | 46.7 | 0 | 50.0 |")


def test_a_store_without_the_reference_is_named(stores: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    full, small = stores

    assert cli.run(["report", "hard", "--results", full, "--downsampled", small, "--reference", "qmop"]) == cli.MISTAKE
    assert f"reference is 'qmop', but {small} holds records of uncompressed alone" in capsys.readouterr().err


def test_a_seed_that_no_generator_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="seed is -1, but it must be at least 0"):
        hard.HardRecipe(results="r", downsampled="d", seed=-1)
