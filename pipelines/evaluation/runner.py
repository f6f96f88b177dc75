"""An evaluation from its recipe to its result: what is missing is done, and everything is counted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from cluster.capacity import require
from cluster.processes import set_handler
from cluster.progress import Progress
from cluster.session import ray_session
from pipelines.evaluation.claims import Claims
from pipelines.evaluation.discovery import discover
from pipelines.evaluation.recipe import EvaluateRecipe
from pipelines.evaluation.scheduler import Source, Spread, Tally
from pipelines.evaluation.sources import Appearing, AtOnce
from pipelines.evaluation.suites import prepare_suite
from pipelines.evaluation.units import Generation, Unit, finished_ids, plan_units, results_of
from qmop.vtcbench.records import Record
from qmop.vtcbench.suite import SuiteManifest

_LOOK_S = 0.2


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """What an evaluation did; `planned == done + reused + len(failed)`.

    Attributes:
        records: of all units that the store now holds.
        planned: units in all.
        done: by this evaluation.
        reused: those that were there, or that another evaluation did meanwhile.
        failed: unit (label and shard) to what is known of why it is missing.
        suite: that was asked.
        units: ids of the units that the store now holds.
        poisoned: items that could not be answered and count as wrong, with the reason.
        looked: pictures that went through a vision tower that is shared.
        cut: by label, how many answers ended at the longest answer's length.
    """

    records: tuple[Record, ...]
    planned: int
    done: int
    reused: int
    failed: dict[str, str]
    suite: SuiteManifest
    units: tuple[str, ...]
    poisoned: dict[str, str] = field(default_factory=dict)
    looked: int = 0
    cut: dict[str, int] = field(default_factory=dict)


def evaluate(recipe: EvaluateRecipe, progress: Progress) -> EvaluateResult:
    """Judge every named checkpoint on every shard of the suite; what the store holds is not computed again.

    Raises:
        FileNotFoundError: if a checkpoint or the suite is missing.
        ValueError: if names clash or the cluster is too small.
    """
    if recipe.watch:
        return _watched(recipe, progress)
    found = discover(recipe.checkpoints)
    for folder, reason in found.skipped.items():
        progress.say(f"skipping {folder}: {reason}")
    suite = prepare_suite(recipe, progress)
    units = plan_units(found.candidates, suite, Generation(max_new_tokens=recipe.max_new_tokens))
    there = finished_ids(recipe.output)
    missing = [unit for unit in units if unit.id not in there]
    progress.say(
        f"evaluating {len(found.candidates)} checkpoints x {len(suite.shards)} shards ({suite.count} items, suite "
        f"{suite.digest[:12]}): {len(missing)} units to do, {len(units) - len(missing)} reused"
    )
    if len({unit.candidate.digest for unit in missing}) == 1:  # nobody to share a pass with
        recipe = replace(recipe, tower=replace(recipe.tower, shared=False))
    tally = Tally()
    if missing:
        tally = _spread(AtOnce(missing), suite, recipe, progress, workers=min(recipe.workers, len(missing)))
    return _result(units, suite, recipe, tally)


def _watched(recipe: EvaluateRecipe, progress: Progress) -> EvaluateResult:
    """Judge checkpoints as they appear, until nothing came for long enough or somebody wants an end."""
    suite = prepare_suite(recipe, progress)
    with _asked_to_stop() as stop, Claims(recipe.output, recipe.watching.lease_s) as claims:
        source = Appearing(recipe, suite, claims, progress, stop.is_set)
        progress.say(f"watching {', '.join(recipe.checkpoints)}: {suite.count} items, suite {suite.digest[:12]}")
        while not (first := source.more(recipe.workers)) and not source.over() and not stop.is_set():
            stop.wait(min(_LOOK_S, recipe.watching.poll_s))
        tally = Tally()
        if first:
            source.give_back(first)
            tally = _spread(source, suite, recipe, progress, workers=recipe.workers)
        if stop.is_set():
            progress.say("asked to end: what was under way is left to others or to the next time")
    return _result(source.units(), suite, recipe, tally)


def _spread(source: Source, suite: SuiteManifest, recipe: EvaluateRecipe, progress: Progress, *, workers: int) -> Tally:
    with ray_session(recipe.ray, progress), progress.stage("evaluating"):
        require(
            what=f"evaluation with {workers} workers",
            num_cpus=workers * recipe.threads,
            num_gpus=workers * recipe.num_gpus,
            progress=progress,
        )
        return Spread(source, suite, recipe, progress).run()


def _result(units: list[Unit], suite: SuiteManifest, recipe: EvaluateRecipe, tally: Tally) -> EvaluateResult:
    there = finished_ids(recipe.output)
    kept = tuple(unit.id for unit in units if unit.id in there)
    failed = {unit.name: tally.failed.get(unit.name, "not done") for unit in units if unit.id not in there}
    done = len(tally.done.intersection(kept))
    found = results_of(kept, recipe.output)
    assert len(units) == len(kept) + len(failed), f"{len(units)} units planned, {len(kept)} kept, {len(failed)} failed"
    return EvaluateResult(
        records=found.records,
        planned=len(units),
        done=done,
        reused=len(kept) - done,
        failed=failed,
        suite=suite,
        units=kept,
        poisoned=found.poisoned,
        looked=tally.looked,
        cut=found.cut,
    )


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """SIGTERM and Ctrl-C as a wish instead of an end; whoever says it twice is obeyed at once."""
    stop = threading.Event()
    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}

    def heard(number: int, _frame: object) -> None:
        if stop.is_set():
            set_handler(signal.Signals(number), before[signal.Signals(number)])
            signal.raise_signal(number)
        stop.set()

    for which in before:
        set_handler(which, heard)
    try:
        yield stop
    finally:
        for which, handler in before.items():
            set_handler(which, handler)
