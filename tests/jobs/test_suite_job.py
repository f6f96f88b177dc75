from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jobs import cli
from qmop.vtcbench.suite import load_suite, read_shard
from tests.qmop.vtcbench.natural.copies import mme_rows, mmstar_rows, parquet

LABELS = (
    [("mme", f"existence/000{picture}/{number}", "GU") for picture in range(2) for number in (1, 2)]
    + [("mmstar", str(number), "SC") for number in range(3)]
    + [("mmstar", "3", None), ("textvqa", "5", "LD")]
)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    mme, mmstar = parquet(tmp_path / "mme.parquet", mme_rows()), parquet(tmp_path / "mmstar.parquet", mmstar_rows(5))
    write(tmp_path / "labels.jsonl", LABELS)
    return [
        "suite", "--sources.mme.path", str(mme), "--sources.mmstar.path", str(mmstar),
        "--labels", str(tmp_path / "labels.jsonl"), "--output", str(tmp_path / "suite"),
    ]  # fmt: skip


def write(file: Path, labels: list[tuple[str, str, str | None]]) -> None:
    rows = (
        {"source": source, "id": name, "decision": "accept" if code else "reject", "dimension": code}
        for source, name, code in labels
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_labels_become_a_suite_and_the_same_command_finds_it(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(command) == 0
    said = capsys.readouterr().err
    suite = load_suite(tmp_path / "suite")

    assert dict(suite.dimensions) == {"GU": 4, "SC": 3}
    assert "rows: 9 seen = 7 taken + 2 not accepted or not chosen + 0 that are no samples" in said
    assert "left out: 1 labelled samples of textvqa" in said
    assert {rendered.item.scorer for rendered in read_shard(suite.folder, suite.shards[0])} == {
        "yes_no",
        "option_letter",
    }
    stamp = (tmp_path / "suite" / "manifest.json").stat().st_mtime_ns
    assert cli.run(command) == 0
    assert "holds this suite already: 7 items" in capsys.readouterr().err
    assert (tmp_path / "suite" / "manifest.json").stat().st_mtime_ns == stamp


def test_other_labels_need_another_folder(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(command) == 0
    write(tmp_path / "labels.jsonl", [*LABELS[:-2], ("mmstar", "3", "LD")])

    assert cli.run(command) == cli.MISTAKE
    assert "holds a natural suite of labels" in capsys.readouterr().err
    assert cli.run([*command[:-1], str(tmp_path / "other")]) == 0
    assert load_suite(tmp_path / "other").digest != load_suite(tmp_path / "suite").digest


@pytest.mark.parametrize(
    ("damage", "why"), [("{", "Expecting property name"), ("[1]", "it is no JSON object"), ("\xff", "decode|Expecting")]
)
def test_a_damaged_origin_is_named_with_the_way_out(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, why: str
) -> None:
    assert cli.run(command) == 0
    (tmp_path / "suite" / "natural.json").write_bytes(damage.encode("latin-1"))

    assert cli.run(command) == cli.MISTAKE
    said = capsys.readouterr().err
    named = (
        rf"output {tmp_path / 'suite'} holds a damaged natural.json \(.*({why}).*\): choose another output or delete"
    )
    assert re.search(named, said)


def test_a_balanced_suite_takes_as_many_of_each(command: list[str], tmp_path: Path) -> None:
    assert cli.run([*command, "--per_dimension", "2"]) == 0
    assert dict(load_suite(tmp_path / "suite").dimensions) == {"GU": 2, "SC": 2}


def test_a_label_of_an_unknown_id_is_named(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "labels.jsonl", [*LABELS, ("mmstar", "999", "LD")])

    assert cli.run(command) == cli.MISTAKE
    assert "labels name samples that the copies do not have: mmstar 999" in capsys.readouterr().err
    assert not (tmp_path / "suite" / "manifest.json").exists()
