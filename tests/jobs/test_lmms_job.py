from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from jobs import cli
from qmop.vtcbench.suite import write_suite


def test_a_suite_is_rendered_or_taken_and_gives_the_same_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite(tmp_path / "suite", 5, 40, 15)

    assert cli.run(["suite", "lmms", "--output", str(tmp_path / "a"), "--count", "40", "--seed", "5"]) == 0
    assert cli.run(["suite", "lmms", "--output", str(tmp_path / "b"), "--suite", suite.folder]) == 0

    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab")
    assert first == second
    assert yaml.safe_load(first["vtcbench.yaml"])["metadata"]["suite"] == suite.digest
    assert sum(pq.read_metadata(path).num_rows for path in (tmp_path / "a").glob("*.parquet")) == 40
    said = capsys.readouterr().err
    assert f"suite {suite.digest[:12]}, 40 items: vtcbench_gu 8" in said
    assert f"--tasks vtcbench --include_path {tmp_path / 'a'}" in said


def test_what_cannot_be_written_or_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, words in (
        (["--output", "s3://bucket/tasks"], "name a local folder"),
        (["--output", str(tmp_path), "--count", "0"], "count is 0"),
        (["--output", str(tmp_path), "--suite", str(tmp_path / "none")], "holds no manifest.json"),
    ):
        assert cli.run(["suite", "lmms", *wrong]) == cli.MISTAKE
        assert words in capsys.readouterr().err
