"""What the driver does with the notes of a run: lines for people, numbers for trackers, an account that stays."""

from __future__ import annotations

from collections import deque
from typing import Any

from cluster.progress import Progress
from cluster.storage import join, write_atomic
from pipelines.training.account import Account
from pipelines.training.curves import curves
from pipelines.training.recipe import TrainRecipe
from pipelines.training.sight import Sight, global_step
from pipelines.training.tracking import Tracker

METRICS = "metrics.jsonl"
_LINES = {
    "export": "exported {name} ({digest:.12})",
    "state": "saved {name} ({bytes:,} bytes, {seconds:.1f} s beside the training)",
    "state_failed": "WARNING: {name} was not saved by process {rank}, training goes on: {error}",
    "states_kept": "WARNING: states before {name} were not removed, the next state tries again: {error}",
    "resumed": "resumed from {name} ({bytes:,} bytes read in {seconds:.1f} s)",
    "skipped": "WARNING: {stage} step {step}: the loss was not finite, so these samples were left out: {keys}",
    "left_out": "WARNING: {stage} step {step}: {count} prompts leave no room for an answer under max_length: {keys}",
    "refused": "WARNING: {name} cannot be used: {why}",
    "validation_judged": "judged {name}: {metric} {value:.3f} over {items} items in {seconds:.0f} s, {standing}",
    "validation_failed": "WARNING: {name} was not judged and cannot be the best, training goes on: {why}",
    "validation_passed_over": "{name} is not judged: {why}",
    "best_unwritten": "WARNING: {name} was not written, the next verdict tries again: {error}",
    "retired": "removed {name}, of which keep_exports has no need",
    "not_retired": "WARNING: {name} was not removed, the next export tries again: {error}",
}


class News:
    """Hears every note of a run, from one thread at a time.

    Args:
        recipe: of the run.
        progress: takes the lines.
        trackers: take the numbers.

    Raises:
        StorageError: if what an earlier part of the run has noted cannot be read.
    """

    def __init__(self, recipe: TrainRecipe, progress: Progress, trackers: Tracker) -> None:
        self._recipe, self._progress, self._trackers = recipe, progress, trackers
        self._sight, self._step = Sight(recipe), 0
        self._account = Account(join(recipe.output, METRICS), progress.say)
        self._late: deque[dict[str, float]] = deque()

    def hear(self, note: dict[str, Any]) -> None:
        """Turn a note into a line of progress and numbers for the trackers."""
        if note["kind"] == "start":
            self._account.go_back(note["stage"], note["step"])
            return
        self._account.add(note)
        if note["kind"] == "step":
            seen = self._sight.see(note)
            # To trackers an earlier step means that the run went back, so a verdict goes with a step to come.
            late = self._late.popleft() if self._late else {}
            self._trackers.scalars(seen.step, seen.scalars | late)
            self._step = seen.step
            self._progress.say(seen.line)
            return
        if note["kind"] == "validation_judged":
            self._late.append(self._scalars_of_verdict(note))
        self._progress.say(_LINES[note["kind"]].format(**note))

    def close(self) -> None:
        """Hand on what is left, finish the account and draw it.

        Raises:
            StorageError: if account or picture cannot be written.
        """
        for late in self._late:
            self._step = max(self._step, int(late["vtcbench/step"])) + 1
            self._trackers.scalars(self._step, late)
        try:
            self._keep()
        finally:
            self._trackers.close()

    def _scalars_of_verdict(self, note: dict[str, Any]) -> dict[str, float]:
        step = global_step(self._recipe, note["stage"], note["step"])
        return {"vtcbench/step": step} | {f"vtcbench/{name}": value for name, value in note["scores"].items()}

    def _keep(self) -> None:
        self._account.close()
        if self._account.has_steps():
            write_atomic(join(self._recipe.output, "curves.png"), curves(join(self._recipe.output, METRICS)))
