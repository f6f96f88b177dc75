"""All records in one file: the tables that come of it are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qmop.tiny.comparison.kept import read, write
from qmop.tiny.comparison.results import gather
from qmop.tiny.comparison.table import page
from tests.qmop.tiny.comparison.conftest import unit
from tests.qmop.tiny.comparison.test_comparison_table import Found, answered


def found() -> list[Found]:
    draw = np.random.default_rng(2)
    runs = [unit(name, seed=seed) for name in ("prune", "lambda 0.25") for seed in range(2)]
    plain = [answered(one, draw.integers(0, 2, 20).tolist()) for one in [*runs, unit("uncompressed", tokens=144)]]
    return [*plain, answered(unit("qmop"), draw.integers(0, 2, 20).tolist(), (0.6, 0.4, 0.0))]


def test_the_tables_are_the_same(tmp_path: Path) -> None:
    write(found(), tmp_path / "records.parquet")
    again = read(tmp_path / "records.parquet")
    assert [one for one, _ in again] == [one for one, _ in found()]
    first, second = gather(found()), gather(again)
    assert page(second) == page(first)
    assert (second.digest, second.suite_digest) == (first.digest, first.suite_digest)


def test_a_record_keeps_what_a_table_reads(tmp_path: Path) -> None:
    one, records = answered(unit("qmop"), [1.0, 0.0], (0.5, 0.25, 0.25))
    records = [replace(record, task="marks", prediction="red", difficulty=3.0, checkpoint="c") for record in records]
    write([(one, records)], tmp_path / "records.parquet")
    ((_, again),) = read(tmp_path / "records.parquet")
    assert [one.seconds for one in again] == pytest.approx([one.seconds for one in records])
    assert [replace(one, seconds=0.0) for one in again] == [replace(one, seconds=0.0) for one in records]


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no records at .*absent: name a file that --keep wrote"):
        read(tmp_path / "absent")
    pq.write_table(pa.table({"a": [1]}), other := tmp_path / "other.parquet")
    with pytest.raises(
        ValueError, match=r"holds no records of a comparison: its columns are a; name a file that --keep wrote$"
    ):
        read(other)
    (broken := tmp_path / "broken.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match="arquet"):
        read(broken)
    one, records = answered(unit("qmop"), [1.0])
    stranger = replace(one, row=replace(one.row, name="stranger"))
    write([(stranger, records)], other)
    with pytest.raises(ValueError, match="rows that this version does not know: stranger"):
        read(other)
