"""Source to corpus: units in parallel, one shard each, committed one by one, the manifest last."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice

import ray
from ray.exceptions import RayTaskError

from cluster import storage
from cluster.progress import Progress
from pipelines.corpus.manifest import (
    LAYOUT,
    NAME,
    QUARANTINE,
    Manifest,
    Shard,
    corpus_digest,
    load_manifest,
)
from pipelines.corpus.recipe import Limits, PrepareRecipe
from pipelines.corpus.samples import UNCOUNTED, Fault, Origin, Sample
from pipelines.corpus.shards import digests, encode_shard, index_shard
from pipelines.corpus.sources import Source, Unit, open_source
from pipelines.corpus.sources.base import absolute, digest_of
from pipelines.corpus.validation import check

_PARTS = "parts"
_SHOWN = 5
_AHEAD = 2


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
        return storage.join(self.output, _PARTS, f"{index:06d}.json")

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
        return Shard(url=name, nsamples=len(samples), filesize=len(data), sha256=sha256, md5sum=md5)


def prepare(recipe: PrepareRecipe, progress: Progress) -> Manifest:
    """Make the corpus that a recipe describes, or finish one that was begun, or say that it is complete.

    Works in parallel where Ray is initialised, in this process otherwise. A shard of an interrupted run is kept when
    recipe and source are the same and its bytes are intact.

    Returns:
        The manifest, already written to `<output>/manifest.json`.

    Raises:
        FileNotFoundError: if the source is not there.
        ValueError: if the source is malformed as a whole, the output folder holds another corpus, more samples are
            bad than the recipe allows, or none is good.
    """
    output = absolute(recipe.output)
    source = open_source(recipe)
    with progress.stage(f"Looking at the {recipe.source} source"):
        plan = digest_of(LAYOUT, recipe.content(), source.fingerprint())
        existing = _existing(output, plan, overwrite=recipe.overwrite)
    if existing is not None:
        progress.say(f"Corpus {output} is complete: {existing.written} samples, nothing to do")
        return existing
    job = Job(source=source, output=output, limits=recipe.limits, plan=plan)
    with progress.stage(f"Preparing {output}"):
        parts = _run(job, source.units(recipe.samples_per_shard), progress)
    return _commit(recipe, job, parts, progress)


def _existing(output: str, plan: str, *, overwrite: bool) -> Manifest | None:
    """The complete corpus of this very plan, if there is one; makes room for a new one where that is asked for."""
    if overwrite:
        _clear(output)
    if not storage.exists(storage.join(output, NAME)):
        return None
    found = load_manifest(output)
    if found.plan == plan and _all_there(found):
        return found
    if found.plan != plan:
        raise ValueError(
            f"output: {output} holds a corpus from another recipe or from other raw data, choose another folder or "
            "set overwrite to true"
        )
    storage.remove(storage.join(output, NAME))
    return None


def _clear(output: str) -> None:
    """Forget an earlier run, so that every image is looked at again; its shards go when the new manifest comes."""
    parts = storage.join(output, _PARTS)
    committed = storage.list_files(parts, ".json") if storage.exists(parts) else []
    for uri in [storage.join(output, NAME), *committed]:
        storage.remove(uri)


def _all_there(manifest: Manifest) -> bool:
    """A quick look: every shard has its size. `verify` reads every byte."""
    sizes = storage.list_sizes(manifest.folder, ".tar")
    return all(sizes.get(manifest.uri(number)) == shard.filesize for number, shard in enumerate(manifest.shards))


def _run(job: Job, units: list[Unit], progress: Progress) -> list[Part]:
    """All parts in order, with a running account."""
    parts: dict[int, Part] = {}
    bad = 0
    for part, fresh in _parts(job, units):
        parts[part.index] = part
        bad += len(part.faults)
        note = f"{bad} samples quarantined" if fresh else "kept from an earlier run"
        progress.update("Shards", len(parts), len(units), note)
    assert sorted(parts) == list(range(len(units)))
    return [parts[index] for index in range(len(units))]


def _parts(job: Job, units: list[Unit]) -> Iterator[tuple[Part, bool]]:
    """Each part once, in the order of completion, and whether it was made just now."""
    if not ray.is_initialized():
        for unit in units:
            yield _part(job, unit)
        return
    shared = ray.put(job)
    worker = ray.remote(_part)
    slots = max(1, int(ray.cluster_resources().get("CPU", 1))) + _AHEAD
    waiting = iter(units)
    running = [worker.remote(shared, unit) for unit in islice(waiting, slots)]
    while running:
        done, running = ray.wait(running, num_returns=1)
        running += [worker.remote(shared, unit) for unit in islice(waiting, 1)]
        yield _result(done[0])


def _result(reference: ray.ObjectRef) -> tuple[Part, bool]:
    """A worker's answer; its complaint about storage or source without the worker's traceback around it."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, ValueError | OSError):
            raise error.cause from error
        raise


def _part(job: Job, unit: Unit) -> tuple[Part, bool]:
    part = job.finished(unit)
    return (part, False) if part is not None else (job.run(unit), True)


def _commit(recipe: PrepareRecipe, job: Job, parts: list[Part], progress: Progress) -> Manifest:
    """Write the account of bad samples, hold it against the ceiling, and make the corpus visible."""
    faults = [fault for part in parts for fault in part.faults]
    lines = "".join(fault.to_json() + "\n" for fault in faults)
    storage.write_atomic(storage.join(job.output, QUARANTINE), lines.encode())
    _report(faults, progress)
    shards = tuple(part.shard for part in parts if part.shard is not None)
    manifest = Manifest(
        folder=job.output,
        shards=shards,
        input=sum(part.input for part in parts),
        written=sum(shard.nsamples for shard in shards),
        quarantined=dict(sorted(Counter(fault.reason for fault in faults).items())),
        source=recipe.source,
        plan=job.plan,
        digest=corpus_digest(shards),
    )
    _hold_ceiling(recipe, manifest)
    _remove_strays(manifest)
    storage.write_atomic(storage.join(job.output, NAME), manifest.to_json())
    progress.say(f"Corpus {job.output}: {manifest.written} samples in {len(shards)} shards of {manifest.input} records")
    return manifest


def _report(faults: list[Fault], progress: Progress) -> None:
    for reason, count in Counter(fault.reason for fault in faults).most_common():
        progress.say(f"Quarantined {count} x {reason}")
    for fault in faults[:_SHOWN]:
        progress.say(f"  {fault.reason}: {fault.detail} {_readable(fault.origin)}")
    if len(faults) > _SHOWN:
        progress.say(f"  and {len(faults) - _SHOWN} more in {QUARANTINE}")


def _readable(origin: Origin) -> str:
    text = json.dumps(origin, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def _hold_ceiling(recipe: PrepareRecipe, manifest: Manifest) -> None:
    counted = {reason: count for reason, count in manifest.quarantined.items() if reason not in UNCOUNTED}
    bad = sum(counted.values())
    top = ", ".join(f"{count} x {reason}" for reason, count in Counter(counted).most_common(_SHOWN))
    where = storage.join(manifest.folder, QUARANTINE)
    if bad > max(recipe.tolerated_bad, recipe.max_bad_share * manifest.input):
        raise ValueError(
            f"max_bad_share: {bad} of {manifest.input} samples are bad ({top}), more than {recipe.max_bad_share:.1%} "
            f"and more than {recipe.tolerated_bad}: see {where}, repair the source or raise the ceiling"
        )
    if not manifest.written:
        raise ValueError(f"source: none of {manifest.input} records is usable ({top or 'none obtained'}), see {where}")


def _remove_strays(manifest: Manifest) -> None:
    """Shards that an earlier, larger corpus left behind would mislead readers that take the whole folder."""
    known = {manifest.uri(number) for number in range(len(manifest.shards))}
    for uri in storage.list_files(manifest.folder, ".tar"):
        if uri not in known and uri.rpartition("/")[2].startswith("corpus-"):
            storage.remove(uri)
