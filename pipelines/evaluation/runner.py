"""Plans units, spreads the missing ones over the cluster, and counts until planned = done + failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from cluster.capacity import require
from cluster.progress import Progress
from cluster.session import ray_session
from cluster.storage import exists, is_s3, join, put_file, read_bytes
from pipelines.evaluation.asked_corpus import corpus_suite
from pipelines.evaluation.discovery import Candidate, discover
from pipelines.evaluation.judge import Judge
from pipelines.evaluation.recipe import EvaluateRecipe, SuiteRecipe
from pipelines.evaluation.units import Generation, Unit, finished, records_of_ids
from qmop.vtcbench.records import Record
from qmop.vtcbench.suite import MANIFEST, SuiteManifest, parse_manifest, write_suite

_WAIT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """What an evaluation did; `planned == done + reused + len(failed)`."""

    records: tuple[Record, ...]
    planned: int
    done: int
    reused: int
    failed: dict[str, str]
    """Unit (label and shard) to the error that ended it."""
    suite: SuiteManifest
    units: tuple[str, ...]
    """Ids of the units that the store now holds."""


def evaluate(recipe: EvaluateRecipe, progress: Progress) -> EvaluateResult:
    """Judge every named checkpoint on every shard of the suite; what the store holds is not computed again.

    Raises:
        FileNotFoundError: if a checkpoint or the suite is missing.
        ValueError: if names clash or the cluster is too small.
    """
    found = discover(recipe.checkpoints)
    for folder, reason in found.skipped.items():
        progress.say(f"skipping {folder}: {reason}")
    suite = prepare_suite(recipe, progress)
    units = plan_units(found.candidates, suite, recipe)
    missing = [unit for unit in units if not finished(unit, recipe.output)]
    progress.say(
        f"evaluating {len(found.candidates)} checkpoints x {len(suite.shards)} shards ({suite.count} items, suite "
        f"{suite.digest[:12]}): {len(missing)} units to do, {len(units) - len(missing)} reused"
    )
    failed: dict[str, str] = {}
    if missing:
        with ray_session(recipe.ray, progress), progress.stage("evaluating"):
            workers = min(recipe.workers, len(missing))
            require(what=f"evaluation with {workers} workers", num_cpus=workers, progress=progress)
            failed = _spread(missing, suite, workers, recipe, progress)
    kept = [unit for unit in units if finished(unit, recipe.output)]
    failed = {name: error for name, error in failed.items() if name not in {unit.name for unit in kept}}
    assert len(units) == len(kept) + len(failed), f"{len(units)} units planned, {len(kept)} kept, {len(failed)} failed"
    return EvaluateResult(
        records=tuple(records_of_ids([unit.id for unit in kept], recipe.output)),
        planned=len(units),
        done=len(missing) - len(failed),
        reused=len(units) - len(missing),
        failed=failed,
        suite=suite,
        units=tuple(unit.id for unit in kept),
    )


def prepare_suite(recipe: EvaluateRecipe, progress: Progress) -> SuiteManifest:
    """The suite that a recipe names: a suite's folder, a prepared corpus, or the rendered one, drawn if need be."""
    if recipe.suite is None:
        return _rendered_suite(recipe.rendered, recipe.output, progress)
    place = join(recipe.suite, MANIFEST)
    if not exists(place):
        raise FileNotFoundError(
            f"suite {recipe.suite} holds neither a suite nor a prepared corpus: {MANIFEST} is missing"
        )
    asked = corpus_suite(recipe.suite, recipe.output, progress)
    return parse_manifest(read_bytes(place), recipe.suite) if asked is None else asked


def _rendered_suite(wanted: SuiteRecipe, store: str, progress: Progress) -> SuiteManifest:
    """Draw the suite into the store; for a remote one, draw it here and copy it, its manifest last."""
    folder = join(store, f"suite-{wanted.seed}-{wanted.count}-{wanted.items_per_shard}")
    if is_s3(store) and exists(join(folder, MANIFEST)):
        return parse_manifest(read_bytes(join(folder, MANIFEST)), folder)
    with progress.stage(f"rendering suite {folder}"), TemporaryDirectory() as scratch:
        home = scratch if is_s3(store) else folder
        suite = write_suite(
            home,
            wanted.seed,
            wanted.count,
            wanted.items_per_shard,
            lambda done, total: progress.update("suite items", done, total),
        )
        if is_s3(store):
            for name in (*(shard.url for shard in suite.shards), MANIFEST):
                put_file(Path(home, name), join(folder, name))
        return replace(suite, folder=folder)


def plan_units(candidates: Sequence[Candidate], suite: SuiteManifest, recipe: EvaluateRecipe) -> list[Unit]:
    """Every candidate on every shard."""
    generation = Generation(max_new_tokens=recipe.max_new_tokens)
    return [
        Unit(candidate=candidate, shard=shard, suite_digest=suite.digest, generation=generation)
        for candidate in candidates
        for shard in suite.shards
    ]


def _spread(
    units: list[Unit], suite: SuiteManifest, workers: int, recipe: EvaluateRecipe, progress: Progress
) -> dict[str, str]:
    """Run units on `workers` processes; each takes the next unit of the checkpoint that it holds, if there is one."""
    idle = [_new_judge(recipe, suite) for _ in range(workers)]
    waiting = deque(units)
    running: dict[Any, tuple[Any, Unit]] = {}
    holds: dict[Any, str] = {}
    failed: dict[str, str] = {}
    done = 0
    while waiting or running:
        while waiting and idle:
            worker = idle.pop()
            unit = _next(waiting, holds.get(worker), set(holds.values()))
            holds[worker] = unit.candidate.digest
            running[worker.run.remote(unit)] = (worker, unit)
        ready, _ = ray.wait(list(running), num_returns=1, timeout=_WAIT_S)
        for reference in ready:
            worker, unit = running.pop(reference)
            idle.append(worker)
            name = unit.name
            try:
                _, wrong = ray.get(reference)
                done += 1
                progress.update("units", done, len(units), name)
                if wrong:
                    progress.say(f"{name}: {wrong} items could not be answered and count as wrong")
            except RayError as error:
                failed[name] = str(error).strip().splitlines()[-1]
                progress.say(f"unit {name} failed: {failed[name]}")
                if isinstance(error, RayActorError):  # it is gone for good: let another take its place
                    idle.remove(worker)
                    holds.pop(worker, None)
                    idle.append(_new_judge(recipe, suite))
    for worker in idle:
        ray.kill(worker)
    return failed


def _new_judge(recipe: EvaluateRecipe, suite: SuiteManifest) -> Any:
    return Judge.options(num_cpus=1).remote(recipe.output, suite.folder, recipe.batch, 1)  # type: ignore[attr-defined]


def _next(waiting: deque[Unit], held: str | None, elsewhere: set[str]) -> Unit:
    """A unit of the checkpoint that the worker holds, else of one that nobody holds, else the next."""

    def rank(unit: Unit) -> int:
        return 0 if unit.candidate.digest == held else 1 if unit.candidate.digest not in elsewhere else 2

    unit = min(waiting, key=rank)
    waiting.remove(unit)
    return unit
