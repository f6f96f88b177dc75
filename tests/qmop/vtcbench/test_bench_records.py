from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qmop.vtcbench.records import (
    SCHEMA,
    Record,
    from_table,
    judge,
    read_parquet,
    to_parquet_bytes,
    to_table,
)
from qmop.vtcbench.rendered import RenderedItem


def test_records_survive_parquet_and_equal_records_give_equal_bytes(evaluation: list[Record], tmp_path: Path) -> None:
    data = to_parquet_bytes(evaluation)
    (tmp_path / "unit.parquet").write_bytes(data)

    assert read_parquet(data) == evaluation
    assert read_parquet(tmp_path / "unit.parquet") == read_parquet(str(tmp_path / "unit.parquet")) == evaluation
    assert to_parquet_bytes(evaluation) == data


def test_columns_are_plain_types_in_a_fixed_order(evaluation: list[Record]) -> None:
    table = pq.read_table(pa.BufferReader(to_parquet_bytes(evaluation)))

    assert table.schema.equals(SCHEMA)
    assert table.column_names[:3] == ["checkpoint", "label", "method"]
    assert set(table["branch_weights"].is_null().to_pylist()) == {True, False}


def test_duckdb_reads_the_files_of_a_results_store(evaluation: list[Record], tmp_path: Path) -> None:
    half = len(evaluation) // 2
    for number, part in enumerate((evaluation[:half], evaluation[half:])):
        (tmp_path / f"{number}.parquet").write_bytes(to_parquet_bytes(part))
    question = """
        SELECT label, count(*), avg(score), count(*) FILTER (NOT parsable),
               any_value(branch_weights[1]), min(difficulty)
        FROM read_parquet($files) GROUP BY label ORDER BY label
    """

    with duckdb.connect() as database:
        rows = database.execute(question, {"files": str(tmp_path / "*.parquet")}).fetchall()

    mine = {label: [r for r in evaluation if r.label == label] for label in sorted({r.label for r in evaluation})}
    assert rows == [
        (
            label,
            40,
            pytest.approx(sum(record.score for record in records) / 40),
            sum(not record.parsable for record in records),
            0.5 if label == "qmop@16" else None,
            min(record.difficulty for record in records if record.difficulty is not None),
        )
        for label, records in mine.items()
    ]


def test_no_records_make_an_empty_file() -> None:
    assert read_parquet(to_parquet_bytes([])) == []


def test_judging_fills_a_record_from_the_item(small_suite: list[RenderedItem]) -> None:
    item = replace(small_suite[4].item, answers=("two", "two", "2"))
    facts = {"checkpoint": "c", "label": "l", "method": "m", "budget": 16, "visual_tokens": 15}

    right = judge(item, "two", **facts, suite_digest="s", shard="x", seconds=0.5)
    odd = judge(item, "banana", **facts, suite_digest="s", shard="x")

    assert (right.score, right.right, right.parsable, right.answer) == (1.0, True, True, "two | 2")
    assert (odd.score, odd.right, odd.parsable) == (0.0, False, False)
    assert (right.key, right.dimension, right.chance) == (item.key, "SC", 0.25)
    assert isinstance(right.difficulty, float)


def test_half_a_soft_score_counts_as_right(answered: Callable[..., list[Record]]) -> None:
    record = answered("x", lambda _: False)[0]

    assert replace(record, score=0.6).right
    assert not replace(record, score=0.3).right


def test_what_is_no_file_of_records_is_refused(evaluation: list[Record], tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(ValueError, match="junk cannot be read as Parquet"):
        read_parquet(tmp_path / "junk")
    with pytest.raises(FileNotFoundError, match="no records at"):
        read_parquet(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="columns key, score are missing"):
        from_table(to_table(evaluation).drop_columns(["key", "score"]))
    words = pa.array(["good"] * len(evaluation))
    bad = to_table(evaluation).drop_columns(["score"]).append_column("score", words)
    with pytest.raises(ValueError, match="no records of this benchmark"):
        from_table(bad)
