"""Exports judged while the training goes on: one at a time, in a process of their own, watched by a thread here.

An export that comes while another is judged waits, and the newest takes the place of any that waits already: what is
passed over so is told and recorded. Nothing that goes wrong in here can end or stop a training.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from cluster.progress import Progress
from cluster.storage import join
from pipelines.evaluation.alone import CancelledError, LoneJudge
from pipelines.evaluation.recipe import EvaluateRecipe
from pipelines.training.plans import export_uris
from pipelines.training.recipe import StageName, TrainRecipe
from pipelines.training.retention import name_of, retire, still_there, surplus
from pipelines.training.verdicts import BEST, Export, Verdict, Verdicts, verdict_on
from qmop.vtcbench.records import Record
from qmop.vtcbench.summary import summarise

_RESULTS = "validation"
_PATIENCE_S, _LOOK_S = 10.0, 1.0
Tell = Callable[[dict[str, Any]], None]


def validation_of(recipe: TrainRecipe, progress: Progress, tell: Tell) -> Validation:
    """What judges the exports of a run on a Ray cluster."""
    asked, cancelled = recipe.validation, threading.Event()
    store = asked.results or join(recipe.output, _RESULTS)
    exam = EvaluateRecipe(
        checkpoints=[recipe.output],
        output=store,
        rendered=asked.suite,
        batch=asked.batch,
        max_new_tokens=asked.max_new_tokens,
    )
    judge = LoneJudge(
        exam,
        num_cpus=asked.num_cpus,
        num_gpus=asked.num_gpus,
        time_limit_s=asked.time_limit_s,
        progress=progress,
        cancelled=cancelled,
    )
    return Validation(recipe, judge, tell, cancelled)


def outstanding(recipe: TrainRecipe) -> list[Export]:
    """Exports that are there, were to be judged, and have no verdict, in the order of their making."""
    verdicts = Verdicts(recipe)
    if not recipe.validation.every:
        return []
    return [
        export
        for stage in recipe.stages
        for export in still_there(recipe, stage)
        if _is_due(recipe, export) and verdicts.of(export) is None
    ]


class Validation:
    """Judges a run's exports, keeps account of the best, and removes what is surplus.

    As a context it lasts as long as the training: on the way out it judges what still waits, or gives up if the
    training has failed; a run that goes on then judges it.

    Args:
        recipe: of the run.
        judge: from an export's folder to its records; may raise anything.
        tell: takes a note of everything that happens.
        cancelled: is set when nobody waits any more.

    Raises:
        ValueError: if the run's account of the best cannot be read.
    """

    def __init__(
        self, recipe: TrainRecipe, judge: Callable[[str], Sequence[Record]], tell: Tell, cancelled: threading.Event
    ) -> None:
        self._recipe, self._judge, self._tell, self._cancelled = recipe, judge, tell, cancelled
        self._verdicts = Verdicts(recipe)
        self._gone: set[str] = set()
        self._running: Export | None = None
        self._waiting: Export | None = None
        self._latest: dict[StageName, int] = {}
        self._changed, self._over = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="validation", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._cancelled.set()
            with self._changed:
                self._over, self._waiting = True, None
                self._changed.notify_all()
            self._thread.join(_PATIENCE_S)

    def hear(self, note: dict[str, Any]) -> None:
        """Take notice of an export; other notes are not ours."""
        if note["kind"] != "export":
            return
        export = Export(**{name: note[name] for name in ("name", "digest", "stage", "step")})
        with self._changed:
            self._gone.discard(export.name)
            self._latest[export.stage] = export.step
            if _is_due(self._recipe, export):
                self._offer(export)
            self._make_room(export.stage)

    def _offer(self, export: Export) -> None:
        if export in (self._running, self._waiting) or self._verdicts.of(export) is not None:
            return
        if self._running is None:
            self._running = export
        else:
            passed, self._waiting = self._waiting, export
            if passed is not None:
                self._record(verdict_on(passed, "passed_over", why=f"{export.name} came while another was judged"))
        self._changed.notify_all()

    def _finish(self) -> None:
        """Judge what is left; the last notes may still be under way, so the folders are asked instead."""
        for stage in self._recipe.stages:
            exports = still_there(self._recipe, stage)
            with self._changed:
                for export in exports:
                    self._latest[stage] = export.step
                    if _is_due(self._recipe, export):
                        self._offer(export)
                self._make_room(stage)
        with self._changed:
            while self._running is not None and self._thread.is_alive():
                self._changed.wait(_LOOK_S)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._running is not None or self._over)
                export = self._running
            if export is None:
                return
            verdict, seconds = self._judged(export)
            with self._changed:
                if verdict is None:
                    return
                self._record(verdict, seconds)
                self._running, self._waiting = self._waiting, None
                self._make_room(export.stage)
                self._changed.notify_all()

    def _judged(self, export: Export) -> tuple[Verdict | None, float]:
        """The verdict on an export, or none if nobody waits for it; and the seconds that it took."""
        began = time.monotonic()
        try:
            records = self._judge(export_uris(self._recipe, export.stage)[export.step])
            facts = _scored(records, self._recipe.validation.metric)
            verdict = verdict_on(export, "judged", **facts)
        except CancelledError:
            return None, 0.0
        except Exception as error:  # noqa: BLE001 - whatever goes wrong must not end a training
            verdict = verdict_on(export, "failed", why=_reason(error))
        return (None if self._cancelled.is_set() else verdict), time.monotonic() - began

    def _record(self, verdict: Verdict, seconds: float = 0.0) -> None:
        try:
            self._verdicts.add(verdict)
        except OSError as error:
            self._tell({"kind": "best_unwritten", "name": BEST, "error": _reason(error)})
        best, metric = self._verdicts.best(), self._recipe.validation.metric
        note: dict[str, Any] = {"kind": f"validation_{verdict.outcome}", **asdict(verdict)}
        if best is not None and verdict.outcome == "judged":
            standing = "the best so far" if best == verdict else f"best is {best.name} with {best.scores[metric]:.3f}"
            value = verdict.scores[metric]
            note |= {"metric": metric, "value": value, "seconds": seconds, "best": best.name, "standing": standing}
        self._tell(note)

    def _make_room(self, stage: StageName) -> None:
        """Remove what a stage has no more use for."""
        best = self._verdicts.best(stage)
        exempt = {export.name for export in (self._running, self._waiting, best) if export is not None}
        for uri in surplus(self._recipe, stage, self._latest.get(stage, 0), exempt | self._gone):
            try:
                if retire(uri):
                    self._tell({"kind": "retired", "name": name_of(uri)})
                self._gone.add(name_of(uri))
            except OSError as error:
                self._tell({"kind": "not_retired", "name": name_of(uri), "error": _reason(error)})


def _is_due(recipe: TrainRecipe, export: Export) -> bool:
    steps = recipe.stage(export.stage).export_steps()
    return recipe.validation.judges(steps.index(export.step) + 1, len(steps))


def _scored(records: Sequence[Record], metric: str) -> dict[str, Any]:
    """The facts of a verdict: accuracies as the report has them.

    Raises:
        ValueError: if the suite does not give the metric.
    """
    (row,) = summarise(records, resamples=1).rows
    figures = {"micro": row.micro, "macro": row.macro, **row.dimensions}
    scores = {name: figure.value for name, figure in figures.items() if figure is not None}
    if metric not in scores:
        raise ValueError(f"validation.metric is {metric}, of which the suite has no item: draw a larger one")
    return {"items": row.micro.n, "suite_digest": records[0].suite_digest, "scores": scores}


def _reason(error: Exception) -> str:
    """What went wrong in one line; of a traceback from afar the last."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
