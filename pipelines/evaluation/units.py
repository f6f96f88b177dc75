"""The unit of work: one checkpoint on one shard of a suite, with one way of generating."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from cluster.storage import create_if_absent, exists, join, read_bytes
from pipelines.evaluation.discovery import Candidate
from qmop.vtcbench.records import Record, read_parquet, to_parquet_bytes
from qmop.vtcbench.suite import ShardInfo

UNITS = "units"
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Everything about generating that may change an answer."""

    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit; `id` is the same wherever and whenever the same work is asked for."""

    candidate: Candidate
    shard: ShardInfo
    suite_digest: str
    generation: Generation

    @property
    def id(self) -> str:
        """SHA-256 of what determines the records: checkpoint, label, shard, generation, schema."""
        asked = {
            "schema": _SCHEMA,
            "checkpoint": self.candidate.digest,
            "label": self.candidate.label,
            "shard": self.shard.sha256,
            "suite": self.suite_digest,
            "generation": asdict(self.generation),
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.candidate.label} on {self.shard.url}"

    def place(self, store: str) -> str:
        """The file of the unit's records in a results store."""
        return _place(self.id, store)


def finished(unit: Unit, store: str) -> bool:
    """Whether a store holds the unit."""
    return exists(unit.place(store))


def commit(unit: Unit, store: str, records: list[Record]) -> bool:
    """Put a unit's records into the store in one act; False if somebody else was first, which changes nothing."""
    return create_if_absent(unit.place(store), to_parquet_bytes(records))


def records_of_ids(ids: list[str], store: str) -> list[Record]:
    """The records of finished units, in the order of their ids."""
    return [record for name in ids for record in read_parquet(read_bytes(_place(name, store)))]


def _place(name: str, store: str) -> str:
    return join(store, UNITS, f"{name}.parquet")
