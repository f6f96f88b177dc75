"""One unit of work: part of a source becomes one shard, checked and committed before anything relies on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from cluster import storage
from pipelines.corpus import duplicates, quarantine
from pipelines.corpus.duplicates import Fingerprint, Verdict, fingerprint
from pipelines.corpus.manifest import Shard, keys_digest
from pipelines.corpus.recipe import Duplicates, Limits
from pipelines.corpus.samples import Fault, Origin, Raw, Sample
from pipelines.corpus.shards import digests, encode_shard, index_shard
from pipelines.corpus.sources import Source, Unit
from pipelines.corpus.statistics import Statistics, measure
from pipelines.corpus.validation import check, evidence_of

PARTS = "parts"
"""Folder of the committed parts beside the shards."""
ORIGINS = "origins"
"""Folder that says of each key where its sample came from: the shards themselves do not tell."""
FORMAT = 2
"""Version of what a part and a record say; parts of another version are made again."""
_REPEATED = frozenset({"duplicate", "near_duplicate"})


@dataclass(frozen=True, kw_only=True)
class Part:
    """What became of one unit: `input` records, each in the shard or among the faults.

    Attributes:
        plan: digest that ties the part to recipe and source.
        index: of the unit.
        input: records that the unit has.
        shard: None where every record was bad.
        quarantine: the shard of what was put aside; None where nothing was.
        statistics: of the samples in the shard.
        faults: without their evidence.
    """

    plan: str
    index: int
    input: int
    shard: Shard | None
    quarantine: Shard | None = None
    statistics: Statistics = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    @property
    def repeated(self) -> dict[int, Verdict]:
        """What was put aside as a repetition, by position."""
        return {fault.position: (fault.reason, fault.detail) for fault in self.faults if fault.reason in _REPEATED}

    def to_json(self) -> bytes:
        """The file that commits the part."""
        return json.dumps(
            asdict(replace(self, faults=[])) | {"faults": [one.account() for one in self.faults]}
        ).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Part:
        """Read a committed part back."""
        fields = json.loads(data)
        for name in ("shard", "quarantine"):
            fields[name] = Shard(**fields[name]) if fields[name] else None
        fields["faults"] = [Fault(**fault) for fault in fields["faults"]]
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs to turn units into shards."""

    source: Source
    output: str
    limits: Limits
    plan: str
    duplicates: Duplicates = field(default_factory=Duplicates)
    tokenizer: str | None = None

    def run(self, unit: Unit, repeated: Mapping[int, Verdict] | None = None) -> Part:
        """Read, validate, write and check one shard, then commit it. Repeating it gives the same bytes.

        Args:
            unit: what to read.
            repeated: good samples that are put aside as repetitions, by position, with reason and detail; None while
                nobody knows yet, and then fingerprints are written for those who decide.
        """
        samples: list[tuple[Sample, Origin]] = []
        faults: list[Fault] = []
        prints: list[Fingerprint] = []
        for position, raw in enumerate(self.source.read(unit), unit.start):
            checked = self._checked(raw, (repeated or {}).get(position))
            if isinstance(checked, Fault):
                faults.append(replace(checked, position=position))
                continue
            assert isinstance(raw, Raw)
            assert raw.position == position, (unit.index, raw.position, position)
            samples.append((checked, raw.origin))
            if repeated is None and self.duplicates.wanted:
                prints.append(fingerprint(position, checked, self.duplicates))
        asked = unit.stop - unit.start
        assert len(samples) + len(faults) == asked, (unit.index, len(samples), len(faults), asked)
        if repeated is None and self.duplicates.wanted:
            storage.write_atomic(self.prints_uri(unit.index), duplicates.to_json(self.plan, prints))
        return self._commit(unit, samples, faults)

    def _checked(self, raw: Raw | Fault, verdict: Verdict | None) -> Sample | Fault:
        checked = raw if isinstance(raw, Fault) else check(raw, self.limits)
        if verdict is None or isinstance(checked, Fault):
            return checked
        assert isinstance(raw, Raw)
        return Fault(reason=verdict[0], detail=verdict[1], origin=raw.origin, evidence=evidence_of(raw))

    def _commit(self, unit: Unit, samples: list[tuple[Sample, Origin]], faults: list[Fault]) -> Part:
        part = Part(
            plan=self.plan,
            index=unit.index,
            input=unit.stop - unit.start,
            shard=self._write(unit.index, samples) if samples else None,
            quarantine=self._write_quarantine(unit.index, faults) if faults else None,
            statistics=measure((sample for sample, _ in samples), self.tokenizer),
            faults=[replace(fault, evidence={}) for fault in faults],
        )
        storage.write_atomic(self.part_uri(unit.index), part.to_json())
        return part

    def part_uri(self, index: int) -> str:
        """Where a part is committed."""
        return storage.join(self.output, PARTS, f"{index:06d}.json")

    def prints_uri(self, index: int) -> str:
        """Where the fingerprints of a part's good samples lie."""
        return storage.join(self.output, PARTS, f"{index:06d}.prints.json")

    def prints(self, index: int) -> list[Fingerprint] | None:
        """The fingerprints of a part's good samples, if they are there and belong to this plan."""
        uri = self.prints_uri(index)
        return duplicates.from_json(storage.read_bytes(uri), self.plan) if storage.exists(uri) else None

    def finished(self, unit: Unit) -> Part | None:
        """The part that an earlier run committed under the same plan, if its shard still has the same bytes."""
        if not storage.exists(self.part_uri(unit.index)):
            return None
        try:
            part = Part.from_json(storage.read_bytes(self.part_uri(unit.index)))
        except (ValueError, KeyError, TypeError):
            return None
        if part.plan != self.plan or part.input != unit.stop - unit.start:
            return None
        if self.duplicates.wanted and self.prints(unit.index) is None:
            return None
        return part if self._intact(part.shard) and self._intact(part.quarantine) else None

    def _intact(self, shard: Shard | None) -> bool:
        if shard is None:
            return True
        uri = storage.join(self.output, shard.url)
        return storage.exists(uri) and storage.sha256_of(uri) == shard.sha256

    def _write(self, index: int, samples: list[tuple[Sample, Origin]]) -> Shard:
        name = f"corpus-{index:06d}.tar"
        data = encode_shard(sample for sample, _ in samples)
        keys = [entry.key for entry in index_shard(data, name)]
        assert keys == [sample.key for sample, _ in samples], f"{name} does not read back as written"
        lines = [json.dumps({"key": sample.key, "origin": origin}) + "\n" for sample, origin in samples]
        storage.write_atomic(storage.join(self.output, ORIGINS, f"corpus-{index:06d}.jsonl"), "".join(lines).encode())
        return self._put(name, data, keys)

    def _write_quarantine(self, index: int, faults: list[Fault]) -> Shard:
        data = quarantine.encode_faults(faults, self.limits.max_bytes)
        return self._put(quarantine.shard_name(index), data, [f"{fault.position:09d}" for fault in faults])

    def _put(self, name: str, data: bytes, keys: list[str]) -> Shard:
        """Write a shard and read it back."""
        sha256, md5 = digests(data)
        uri = storage.join(self.output, name)
        storage.write_atomic(uri, data)
        if storage.sha256_of(uri) != sha256:
            raise storage.StorageError(
                f"{uri} does not hold the bytes that were written, check the storage and run again"
            )
        return Shard(
            url=name,
            nsamples=len(keys),
            filesize=len(data),
            sha256=sha256,
            md5sum=md5,
            keys_sha256=keys_digest(keys),
        )
