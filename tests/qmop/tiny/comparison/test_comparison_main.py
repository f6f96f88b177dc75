"""The command: what is to be run, what is finished, and the tables of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from qmop.tiny.comparison import __main__ as command
from qmop.tiny.comparison.material import base_digest
from qmop.tiny.comparison.rows import Settings
from qmop.tiny.comparison.runs import result_path
from qmop.vtcbench.records import to_parquet_bytes
from qmop.whole_files import write_whole
from tests.qmop.tiny.comparison.conftest import unit
from tests.qmop.tiny.comparison.test_comparison_table import answered

SCORES = {("qmop", 0): [1, 1, 1, 0, 1], ("qmop", 1): [1, 1, 1, 1, 1], ("prune", 0): [0, 1, 0, 0, 1]}
SETTINGS = Settings(items=5, tune_steps=7)


@pytest.fixture(autouse=True)
def _bars() -> Iterator[None]:
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder in which three runs of four are finished."""
    digest = base_digest(SETTINGS)
    for (name, seed), scores in SCORES.items():
        one, records = answered(unit(name, seed=seed), scores)
        write_whole(result_path(tmp_path, SETTINGS, one, digest), to_parquet_bytes(records))
    return tmp_path


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: Path, *asked: str) -> str:
    """What the command writes."""
    shared = ["--output", str(output), "--items", "5", "--tune-steps", "7", "--budgets", "16", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["comparison", *shared, *asked])
    command.main()
    return capsys.readouterr().out


def test_the_list_shows_what_is_finished(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: Path
) -> None:
    before = set(output.rglob("*"))
    lines = told(monkeypatch, capsys, output, "--rows", "qmop", "prune", "--list").splitlines()
    assert lines == [
        *("finished qmop @16 #0", "finished prune @16 #0", "finished qmop @16 #1"),
        "         prune @16 #1",
    ]
    assert set(output.rglob("*")) == before
    other = told(monkeypatch, capsys, output, "--rows", "qmop", "--tune-steps", "8", "--list").splitlines()
    assert other == ["         qmop @16 #0", "         qmop @16 #1"]


def test_groups_of_rows_have_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: Path
) -> None:
    lines = told(
        monkeypatch, capsys, output, "--rows", "primary", "qmop", "methods", "ablations", "--list"
    ).splitlines()
    assert len(lines) == len(set(lines)) == 2 * (13 + 11 + 14)
    assert sum(line.startswith("finished") for line in lines) == 3


def test_the_report_is_of_what_is_finished(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: Path
) -> None:
    before = set(output.rglob("*"))
    page = told(monkeypatch, capsys, output, "--rows", "qmop", "prune", "--report")
    assert set(output.rglob("*")) == before
    assert "| qmop against prune | 1 and 2 | +50.0 (" in page
    assert "| qmop | 2 | 90.0 (" in page
    assert "| prune | 1 | 40.0 (" in page
    rests, facts = (json.loads(line) for line in page.splitlines() if line.startswith("{"))
    assert rests["suite"] == "s"
    assert (facts["finished"], facts["items"], facts["tune_steps"]) == ("3 of 4 runs", 5, 7)
    assert facts["base"] == base_digest(SETTINGS)[:12]


def test_what_is_finished_is_not_run_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: Path
) -> None:
    before = set(output.rglob("*"))
    page = told(monkeypatch, capsys, output, "--rows", "qmop")
    assert "| qmop | 2 | 90.0 (" in page
    assert set(output.rglob("*")) == before


def test_a_kept_file_gives_the_same_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: Path
) -> None:
    file = str(output / "kept.parquet")
    page = told(monkeypatch, capsys, output, "--rows", "qmop", "prune", "--report", "--keep", file)
    assert page.startswith(told(monkeypatch, capsys, output / "elsewhere", "--kept", file).strip())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            ["--rows", "qmopp", "--list"],
            "rows names qmopp, which are neither rows nor groups: choose among primary, methods",
        ),
        (["--budgets", "25", "--list"], "budgets names 25, at which no row runs"),
        (["--workers", "0"], "workers is 0, but it must be at least 1"),
        (["--base", "nowhere", "--list"], "nowhere holds no model: give a folder with config.json, or tiny"),
        (["--rows", "tokenpacker", "--report"], "no run is finished yet, so there is nothing to report"),
        (["--kept", "absent.parquet"], "no records at absent.parquet"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    asked: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: Path,
) -> None:
    with pytest.raises(SystemExit) as ended:
        told(monkeypatch, capsys, output, *asked)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_every_shared_setting_is_an_option() -> None:
    wanted = command._parser().parse_args(["--align-rate", "0.5", "--pictures", "7", "--base", "b"])
    settings = Settings(
        **{name: getattr(wanted, name) for name in vars(wanted) if name in Settings.__dataclass_fields__}
    )
    assert settings == replace(Settings(), align_rate=0.5, pictures=7, base="b")
