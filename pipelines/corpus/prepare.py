"""Source to corpus: units in parallel, one shard each, committed one by one, the manifest last."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import ray

from cluster import storage
from cluster.capacity import require
from cluster.holding import held
from cluster.progress import Progress
from cluster.storage import absolute
from pipelines.corpus import quarantine, statistics
from pipelines.corpus.duplicates import Verdict, verdicts
from pipelines.corpus.manifest import (
    LAYOUT,
    NAME,
    QUARANTINE,
    Manifest,
    corpus_digest,
    load_manifest,
    misfits,
)
from pipelines.corpus.parts import FORMAT, ORIGINS, PARTS, Job, Part
from pipelines.corpus.recipe import PrepareRecipe
from pipelines.corpus.samples import UNCOUNTED, Fault
from pipelines.corpus.sources import Source, Unit, open_source
from pipelines.corpus.sources.base import digest_of
from pipelines.corpus.workers import mapped, spread

_HOLDER = "prepare.lease.json"
_SHOWN = 5
_READERS = 16


def prepare(recipe: PrepareRecipe, progress: Progress) -> Manifest:
    """Make the corpus that a recipe describes, or finish one that was begun, or say that it is complete.

    Works in parallel where Ray is initialised, in this process otherwise. A shard of an interrupted run is kept when
    recipe and source are the same and its bytes are intact.

    Returns:
        The manifest, already written to `<output>/manifest.json`.

    Raises:
        FileNotFoundError: if the source is not there.
        HeldError: if another process that lives prepares into the same output.
        ValueError: if the source is malformed as a whole, the output folder holds another corpus, more samples are
            bad than the recipe allows or none is good, or the Ray cluster has no CPU to spare.
    """
    output = absolute(recipe.output)
    source = open_source(recipe)
    with progress.stage(f"Looking at the {recipe.source} source"):
        tokenizer = _tokenizer(recipe)
        plan = digest_of(LAYOUT, FORMAT, recipe.content(), tokenizer, source.fingerprint())
        existing = None if recipe.overwrite else _complete(output, plan)
    if existing is None:  # what is complete is not even written a lease into
        with held(storage.join(output, _HOLDER), f"output {output}", say=progress.say):
            return _prepared(recipe, source, output, plan, progress)
    return _told(existing, progress)


def _prepared(recipe: PrepareRecipe, source: Source, output: str, plan: str, progress: Progress) -> Manifest:
    """Make or finish the corpus in an output that no other run writes to."""
    storage.remove_abandoned(output)
    if recipe.overwrite:
        _clear(output)
    elif (existing := _complete(output, plan)) is not None:  # by whoever held the output until now
        return _told(existing, progress)
    storage.remove(storage.join(output, NAME))
    if ray.is_initialized():
        require(what="preparing shards", num_cpus=1, progress=progress)
    job = Job(
        source=source,
        output=output,
        limits=recipe.limits,
        plan=plan,
        duplicates=recipe.duplicates,
        tokenizer=recipe.tokenizer,
    )
    with progress.stage("Listing the records"):
        units = source.units(recipe.samples_per_shard, mapped)
    with progress.stage(f"Preparing {output}"):
        parts = _run(job, units, progress)
    if recipe.duplicates.wanted:
        with progress.stage("Putting repetitions aside"):
            parts = _without_repetitions(job, units, parts, progress)
    return _commit(recipe, job, parts, progress)


def _told(existing: Manifest, progress: Progress) -> Manifest:
    progress.say(f"Corpus {existing.folder} is complete: {existing.written} samples, nothing to do")
    return existing


def _tokenizer(recipe: PrepareRecipe) -> str:
    """The digest of the tokenizer that counts, after a look whether it can be read."""
    if recipe.tokenizer is None:
        return ""
    statistics.load_tokenizer(recipe.tokenizer)
    return storage.sha256_of(statistics.tokenizer_uri(recipe.tokenizer))


def _complete(output: str, plan: str) -> Manifest | None:
    """The complete corpus of this very plan, if there is one; one that lacks shards is to be finished.

    Raises:
        ValueError: if there is a corpus of another plan.
    """
    if not storage.exists(storage.join(output, NAME)):
        return None
    found = load_manifest(output)
    if found.plan != plan:
        raise ValueError(
            f"output: {output} holds a corpus from another recipe or from other raw data, choose another folder or "
            "set overwrite to true"
        )
    return None if misfits(found) else found


def _clear(output: str) -> None:
    """Forget an earlier run, so that every image is looked at again; its shards go when the new manifest comes."""
    parts = storage.join(output, PARTS)
    committed = storage.list_files(parts, ".json") if storage.exists(parts) else []
    for uri in [storage.join(output, NAME), *committed]:
        storage.remove(uri)


def _run(job: Job, units: list[Unit], progress: Progress) -> list[Part]:
    """All parts in order, with a running account."""
    parts: dict[int, Part] = {}
    bad = 0
    for _, (part, fresh) in spread(partial(_part, job), units):
        parts[part.index] = part
        bad += len(part.faults)
        note = f"{bad} samples quarantined" if fresh else "kept from an earlier run"
        progress.update("Shards", len(parts), len(units), note)
    assert sorted(parts) == list(range(len(units)))
    return [parts[index] for index in range(len(units))]


def _part(job: Job, unit: Unit) -> tuple[Part, bool]:
    """A part, and whether it was made just now."""
    part = job.finished(unit)
    return (part, False) if part is not None else (job.run(unit), True)


def _without_repetitions(job: Job, units: list[Unit], parts: list[Part], progress: Progress) -> list[Part]:
    """Compare all good samples, and make the parts again from which something goes."""
    with ThreadPoolExecutor(_READERS) as pool:
        found = verdicts((prints or [] for prints in pool.map(job.prints, range(len(units)))), job.duplicates)
    changed = [(units[part.index], aside) for part, aside in zip(parts, found, strict=True) if part.repeated != aside]
    done = list(parts)
    for number, (_, part) in enumerate(spread(partial(_again, job), changed)):
        done[part.index] = part
        progress.update("Shards with repetitions", number + 1, len(changed))
    return done


def _again(job: Job, changed: tuple[Unit, Mapping[int, Verdict]]) -> Part:
    return job.run(*changed)


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
    if misfits(manifest):
        raise ValueError(
            f"output: {job.output} lacks shards that workers have written, name a folder that every node of the "
            "cluster shares, or a bucket"
        )
    _remove_strays(job.output, parts)
    _write_statistics(job.output, parts, manifest)
    storage.write_atomic(storage.join(job.output, NAME), manifest.to_json())
    progress.say(f"Corpus {job.output}: {manifest.written} samples in {len(shards)} shards of {manifest.input} records")
    return manifest


def _report(faults: list[Fault], progress: Progress) -> None:
    for reason, count in Counter(fault.reason for fault in faults).most_common():
        progress.say(f"Quarantined {count} x {reason}")
    for fault in faults[:_SHOWN]:
        progress.say(_readable(f"  {fault.reason}: {fault.detail} {json.dumps(fault.origin, ensure_ascii=False)}"))
    if len(faults) > _SHOWN:
        progress.say(f"  and {len(faults) - _SHOWN} more in {QUARANTINE}")


def _readable(text: str) -> str:
    """What a terminal takes: a bad record may hold text that no encoding takes."""
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


def _write_statistics(output: str, parts: list[Part], manifest: Manifest) -> None:
    total = statistics.merged(part.statistics for part in parts)
    written = statistics.to_json(total, manifest.quarantined), statistics.draw(total, manifest.quarantined)
    for name, data in zip(statistics.NAMES, written, strict=True):
        storage.write_atomic(storage.join(output, name), data)


def _remove_strays(output: str, parts: list[Part]) -> None:
    """What an earlier, larger corpus left behind would mislead readers that take the whole folder."""
    shards = [part.shard.url for part in parts if part.shard is not None]
    _keep(output, "corpus-", ".tar", shards)
    _keep(storage.join(output, ORIGINS), "corpus-", ".jsonl", [f"{url.removesuffix('.tar')}.jsonl" for url in shards])
    aside = [part.quarantine.url.rpartition("/")[2] for part in parts if part.quarantine is not None]
    _keep(storage.join(output, quarantine.FOLDER), "quarantine-", ".tar", aside)


def _keep(folder: str, prefix: str, suffix: str, names: list[str]) -> None:
    known = set(names)
    for uri in storage.list_files(folder, suffix) if storage.exists(folder) else []:
        name = uri.rpartition("/")[2]
        if name.startswith(prefix) and name not in known:
            storage.remove(uri)
