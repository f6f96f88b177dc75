"""The unit of work: one checkpoint on one shard of a suite, with one way of generating."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.conditional import create_if_absent
from cluster.storage import exists, join, list_files, read_bytes
from pipelines.evaluation.discovery import Candidate
from pipelines.training.exports import library_versions
from qmop.vtcbench.records import Record, from_table, to_table
from qmop.vtcbench.suite import ShardInfo, SuiteManifest

UNITS, FACTS, _SEAL = "units", b"qmop", b"qmop-seal"
_SCHEMA = 1
_READERS = 16
_END = ".parquet"


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
        return hashlib.sha256(json.dumps(self._asked(), sort_keys=True).encode()).hexdigest()

    @property
    def exam(self) -> str:
        """SHA-256 of the same without the shard: what one scheduler claims at a time."""
        asked = {name: value for name, value in self._asked().items() if name != "shard"}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.candidate.label} on {self.shard.url}"

    def place(self, store: str) -> str:
        """The file of the unit's records in a results store."""
        return _place(self.id, store)

    def _asked(self) -> dict[str, Any]:
        return {
            "schema": _SCHEMA,
            "checkpoint": self.candidate.digest,
            "label": self.candidate.label,
            "shard": self.shard.sha256,
            "suite": self.suite_digest,
            "generation": asdict(self.generation),
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a store holds of some units.

    Attributes:
        records: in the order of the units.
        poisoned: items that could not be answered and count as wrong, as `LABEL: KEY`, with the reason.
        cut: by label, how many answers ended at the longest answer's length; labels without any are left out.
    """

    records: tuple[Record, ...]
    poisoned: dict[str, str]
    cut: dict[str, int] = field(default_factory=dict)


def plan_units(candidates: Sequence[Candidate], suite: SuiteManifest, generation: Generation) -> list[Unit]:
    """Every candidate on every shard."""
    return [
        Unit(candidate=candidate, shard=shard, suite_digest=suite.digest, generation=generation)
        for candidate in candidates
        for shard in suite.shards
    ]


def finished(unit: Unit, store: str) -> bool:
    """Whether a store holds the unit."""
    return exists(unit.place(store))


def finished_ids(store: str) -> set[str]:
    """The ids of all units that a store holds, by one listing."""
    folder = join(store, UNITS)
    files = list_files(folder, _END) if exists(folder) else []
    return {name.rsplit("/", 1)[-1].removesuffix(_END) for name in files}


def commit(
    unit: Unit,
    store: str,
    records: list[Record],
    *,
    poisoned: Mapping[str, str] | None = None,
    cut: int = 0,
    fence: int = 0,
    by: str = "",
) -> bool:
    """Put a unit's records into the store in one act; False if somebody else was first, which changes nothing.

    Args:
        unit: whose records they are.
        store: results store.
        records: one for each item of the shard.
        poisoned: keys of items that could not be answered, with the reason.
        cut: answers that ended at the longest answer's length; written down if there are any.
        fence: number of the claim under which it was done; 0 without one. It is written down and decides nothing.
        by: a name that no other evaluation has, for `was_by`.
    """
    facts = {
        **unit._asked(),  # noqa: SLF001 - of this file
        "uri": unit.candidate.uri,
        "poisoned": dict(poisoned or {}),
        "fence": fence,
        "by": by,
        "versions": library_versions(),
        **({"cut": cut} if cut else {}),
    }
    table, told = to_table(records), json.dumps(facts, sort_keys=True)
    table = table.replace_schema_metadata({FACTS: told, _SEAL: _seal(table, told.encode())})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return create_if_absent(unit.place(store), sink.getvalue().to_pybytes())


def facts_of(unit_id: str, store: str) -> dict[str, Any]:
    """What was written down with a unit; nothing for one that an earlier version wrote.

    Raises:
        ValueError: if its file is damaged.
    """
    place = _place(unit_id, store)
    data = read_bytes(place)
    with _named(place):
        return _facts(pq.read_schema(pa.BufferReader(data)))


def _seal(table: pa.Table, facts: bytes) -> str:
    """SHA-256 of everything that is written: a file can be damaged and still be readable."""
    digest = hashlib.sha256(facts)
    digest.update(json.dumps(table.to_pylist(), sort_keys=True).encode())
    return digest.hexdigest()


def _facts(schema: pa.Schema) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((schema.metadata or {}).get(FACTS, b"{}"))
    return facts


def was_by(unit: Unit, store: str, by: str) -> bool:
    """Whether the records that stand are those of an evaluation: a process may end between its commit and its word."""
    return bool(by) and facts_of(unit.id, store).get("by") == by


def results_of(ids: Iterable[str], store: str) -> Result:
    """What finished units found, in the order of their ids.

    Raises:
        ValueError: if a unit's file is damaged.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        parts = list(pool.map(lambda name: _read(name, store), ids))
    return Result(
        records=tuple(record for part in parts for record in part.records),
        poisoned={key: reason for part in parts for key, reason in part.poisoned.items()},
        cut=dict(sum((Counter(part.cut) for part in parts), Counter())),
    )


def records_of_ids(ids: Iterable[str], store: str) -> list[Record]:
    """The records of finished units, in the order of their ids."""
    return list(results_of(ids, store).records)


def _read(name: str, store: str) -> Result:
    """What one unit found."""
    place = _place(name, store)
    data = read_bytes(place)
    with _named(place):
        table = pq.read_table(pa.BufferReader(data))
        metadata = table.schema.metadata or {}
        if _SEAL in metadata and metadata[_SEAL] != _seal(table, metadata[FACTS]).encode():
            raise ValueError("its content is not what was written")
        facts = _facts(table.schema)
        poisoned = {f"{facts['label']}: {key}": why for key, why in facts.get("poisoned", {}).items()}
        cut = {facts["label"]: facts["cut"]} if facts.get("cut") else {}
        return Result(records=tuple(from_table(table)), poisoned=poisoned, cut=cut)


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Whatever damage makes of a file, the file is named."""
    try:
        yield
    except (pa.ArrowException, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{place} is damaged ({reason}): delete it and evaluate again") from error


def _place(name: str, store: str) -> str:
    return join(store, UNITS, f"{name}{_END}")
