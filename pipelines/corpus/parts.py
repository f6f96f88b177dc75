"""One unit of work: part of a source becomes one shard, checked and committed before anything relies on it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from cluster import storage
from pipelines.corpus.manifest import Shard, keys_digest
from pipelines.corpus.recipe import Limits
from pipelines.corpus.samples import Fault, Sample
from pipelines.corpus.shards import digests, encode_shard, index_shard
from pipelines.corpus.sources import Source, Unit
from pipelines.corpus.validation import check

PARTS = "parts"
"""Folder of the committed parts beside the shards."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What became of one unit. `shard` is None where every record was bad; `plan` ties it to recipe and source."""

    plan: str
    index: int
    input: int
    shard: Shard | None
    faults: list[Fault] = field(default_factory=list)

    def to_json(self) -> bytes:
        """The file that commits the part."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Part:
        """Read a committed part back."""
        fields = json.loads(data)
        fields["shard"] = Shard(**fields["shard"]) if fields["shard"] else None
        fields["faults"] = [Fault(**fault) for fault in fields["faults"]]
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs to turn units into shards."""

    source: Source
    output: str
    limits: Limits
    plan: str

    def run(self, unit: Unit) -> Part:
        """Read, validate, write and check one shard, then commit it. Repeating it gives the same bytes."""
        samples: list[Sample] = []
        faults: list[Fault] = []
        for raw in self.source.read(unit):
            checked = raw if isinstance(raw, Fault) else check(raw, self.limits)
            if isinstance(checked, Fault):
                faults.append(checked)
            else:
                samples.append(checked)
        asked = unit.stop - unit.start
        assert len(samples) + len(faults) == asked, (unit.index, len(samples), len(faults), asked)
        shard = self._write(unit.index, samples) if samples else None
        part = Part(plan=self.plan, index=unit.index, input=asked, shard=shard, faults=faults)
        storage.write_atomic(self.part_uri(unit.index), part.to_json())
        return part

    def part_uri(self, index: int) -> str:
        """Where a part is committed."""
        return storage.join(self.output, PARTS, f"{index:06d}.json")

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
        return part if self._intact(part.shard) else None

    def _intact(self, shard: Shard | None) -> bool:
        if shard is None:
            return True
        uri = storage.join(self.output, shard.url)
        return storage.exists(uri) and storage.sha256_of(uri) == shard.sha256

    def _write(self, index: int, samples: list[Sample]) -> Shard:
        name = f"corpus-{index:06d}.tar"
        data = encode_shard(samples)
        keys = [entry.key for entry in index_shard(data, name)]
        assert keys == [sample.key for sample in samples], f"{name} does not read back as written"
        sha256, md5 = digests(data)
        uri = storage.join(self.output, name)
        storage.write_atomic(uri, data)
        if storage.sha256_of(uri) != sha256:
            raise OSError(f"{uri} does not hold the bytes that were written, check the storage and run again")
        return Shard(
            url=name,
            nsamples=len(samples),
            filesize=len(data),
            sha256=sha256,
            md5sum=md5,
            keys_sha256=keys_digest(keys),
        )
