"""One row per (checkpoint, item): what was asked, what was answered, how it was judged. Parquet at rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qmop.vtcbench.items import Item
from qmop.vtcbench.scorers import score

RIGHT = 0.5
"""From this score on an answer counts as right where right or wrong is asked."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One judged answer."""

    checkpoint: str
    """Digest of the checkpoint that answered."""
    label: str
    """Name of the row in the report, one per checkpoint and setting."""
    method: str
    budget: int
    """Visual tokens asked for."""
    visual_tokens: int
    """Visual tokens that the language model really saw."""
    suite_digest: str
    shard: str
    key: str
    dimension: str
    task: str
    question: str
    answer: str
    """The accepted answer, several joined by ` | `."""
    prediction: str
    score: float
    parsable: bool
    difficulty: float | None = None
    level: str = "core"
    """Core, hard or held-out: to be reported apart."""
    chance: float = 0.0
    """Accuracy of a uniform guess."""
    branch_weights: tuple[float, ...] | None = None
    """The router's weights, one per branch, where the method has a router."""
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Whether the answer counts as right."""
        return self.score >= RIGHT


SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("checkpoint", "label", "method")),
        ("budget", pa.int32()),
        ("visual_tokens", pa.int32()),
        *((name, pa.string()) for name in ("suite_digest", "shard", "key", "dimension", "task")),
        *((name, pa.string()) for name in ("question", "answer", "prediction")),
        ("score", pa.float64()),
        ("parsable", pa.bool_()),
        ("difficulty", pa.float64()),
        ("level", pa.string()),
        ("chance", pa.float64()),
        ("branch_weights", pa.list_(pa.float64())),
        ("seconds", pa.float64()),
    ]
)
"""Columns of the Parquet files, in order; plain types that DuckDB and pandas read."""


def require_label(field: str, label: str, records: Iterable[Record], place: str) -> None:
    """Refuse a label that no record has.

    Args:
        field: what names it, for the message.
        label: of a checkpoint.
        records: all that there are.
        place: where they lie, for the message.

    Raises:
        ValueError: if none has it.
    """
    known = {record.label for record in records}
    if label not in known:
        raise ValueError(f"{field} is {label!r}, but {place} holds records of {', '.join(sorted(known))} alone")


def judge(item: Item, prediction: str, **facts: Any) -> Record:
    """Score a prediction by the item's own rule and make its record.

    Args:
        item: what was asked.
        prediction: what the model said.
        facts: the fields of `Record` that the item does not know: `checkpoint`, `label`, `method`, `budget`,
            `visual_tokens`, `suite_digest`, `shard`, and if known `branch_weights` and `seconds`.
    """
    judged = score(prediction, item)
    return Record(
        key=item.key,
        dimension=item.dimension,
        task=item.task,
        question=item.question,
        answer=" | ".join(dict.fromkeys(item.answers)),
        prediction=prediction,
        score=judged.value,
        parsable=judged.parsable,
        difficulty=None if item.difficulty is None else float(item.difficulty),
        level=item.level,
        chance=item.chance,
        **facts,
    )


def to_table(records: Sequence[Record]) -> pa.Table:
    """Records as an Arrow table of `SCHEMA`."""
    return pa.Table.from_pylist([asdict(record) for record in records], schema=SCHEMA)


def from_table(table: pa.Table) -> list[Record]:
    """Records from an Arrow table; columns that we do not know are left alone.

    Raises:
        ValueError: if a column is missing or holds something else than it should.
    """
    missing = [field.name for field in fields(Record) if field.name not in table.column_names]
    if missing:
        raise ValueError(f"these are no records of this benchmark: columns {', '.join(missing)} are missing")
    try:
        rows = table.select(SCHEMA.names).cast(SCHEMA).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"these are no records of this benchmark: {error}") from error
    return [Record(**{**row, "branch_weights": _as_tuple(row["branch_weights"])}) for row in rows]


def to_parquet_bytes(records: Sequence[Record]) -> bytes:
    """A whole Parquet file, to be committed in one piece by whoever stores it; equal records give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(to_table(records), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def read_parquet(source: bytes | str | Path) -> list[Record]:
    """Records from the bytes or the local path of a Parquet file.

    Raises:
        FileNotFoundError: if there is no file at the path.
        ValueError: if it is no Parquet file of records.
    """
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(f"no records at {source}: the file does not exist")
    name = "the bytes given" if isinstance(source, bytes) else str(source)
    try:
        table = pq.read_table(pa.BufferReader(source) if isinstance(source, bytes) else str(source))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{name} cannot be read as Parquet: {error}") from error
    return from_table(table)


def _as_tuple(weights: list[float] | None) -> tuple[float, ...] | None:
    return None if weights is None else tuple(weights)
