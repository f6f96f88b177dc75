"""All records of a comparison in one small Parquet file: what the tables need, without what the suite's seed tells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qmop.tiny.comparison.rows import ROWS, Unit
from qmop.vtcbench.records import Record

_OF_RECORD = ("checkpoint", "suite_digest", "key", "dimension", "task", "level", "prediction", "score", "difficulty")
SCHEMA = pa.schema(
    [
        ("row", pa.string()),
        ("tokens", pa.int16()),
        ("seed", pa.int16()),
        *((name, pa.string()) for name in _OF_RECORD[:-2]),
        ("score", pa.float32()),
        ("difficulty", pa.float32()),
        ("branch_weights", pa.list_(pa.float32())),
        ("seconds", pa.float32()),
    ]
)


def write(found: Sequence[tuple[Unit, list[Record]]], path: Path) -> None:
    """Keep the records of some runs."""
    rows = [
        {
            "row": unit.row.name,
            "tokens": unit.tokens,
            "seed": unit.seed,
            **{name: getattr(record, name) for name in _OF_RECORD},
            "branch_weights": record.branch_weights,
            "seconds": record.seconds,
        }
        for unit, records in found
        for record in records
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, compression="zstd", compression_level=19)


def read(path: Path) -> list[tuple[Unit, list[Record]]]:
    """Runs and their records, without questions and answers.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no records at {path}: name a file that --keep wrote")
    table = pq.read_table(path)
    if table.schema.names != SCHEMA.names:
        raise ValueError(
            f"{path} holds no records of a comparison: its columns are {', '.join(table.schema.names)}; "
            "name a file that --keep wrote"
        )
    runs: dict[tuple[str, int, int], list[Record]] = defaultdict(list)
    for row in table.to_pylist():
        runs[row["row"], row["tokens"], row["seed"]].append(_record(row))
    if unknown := {name for name, _, _ in runs if name not in ROWS}:
        raise ValueError(
            f"{path} holds rows that this version does not know: {', '.join(sorted(unknown))}; "
            "read it with the one that wrote it"
        )
    return [(Unit(row=ROWS[name], tokens=tokens, seed=seed), records) for (name, tokens, seed), records in runs.items()]


def _record(row: dict[str, Any]) -> Record:
    weights = row["branch_weights"]
    return Record(
        **{name: row[name] for name in _OF_RECORD},
        label=f"{row['row']} @{row['tokens']} #{row['seed']}",
        method=row["row"],
        budget=row["tokens"],
        visual_tokens=row["tokens"],
        shard="",
        question="",
        answer="",
        parsable=True,
        branch_weights=None if weights is None else tuple(weights),
        seconds=row["seconds"],
    )
