"""Where units come from: all of them at once, or as checkpoints appear and claims on them are free."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cluster.progress import Progress
from pipelines.evaluation.claims import Claims
from pipelines.evaluation.discovery import Candidate, discover
from pipelines.evaluation.recipe import EvaluateRecipe
from pipelines.evaluation.scheduler import Task
from pipelines.evaluation.units import Generation, Unit, finished_ids, plan_units
from qmop.views import View
from qmop.vtcbench.suite import SuiteManifest

_REST_S, _LONGEST_REST_S = 60.0, 3600.0


class AtOnce:
    """A list of units that is known beforehand."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = list(units)
        self._views = views_of([unit.candidate for unit in units])

    def more(self, room: int) -> list[Task]:
        """All of them, the first time."""
        del room
        given, self._units = self._units, []
        return [Task(unit=unit) for unit in given]

    def views(self) -> Sequence[View]:
        """Those of all their checkpoints."""
        return self._views

    def settled(self, unit: Unit, error: str | None) -> None:
        """Nothing depends on it."""

    def over(self) -> bool:
        """Once they are given out."""
        return not self._units

    def stopped(self) -> bool:
        """Never."""
        return False


class Appearing:
    """Units of checkpoints as they appear, under claims, until nothing has been left to do for a while.

    Args:
        recipe: of the evaluation.
        suite: that is asked.
        claims: shared with no other source.
        progress: hears of checkpoints that come, go and are passed over.
        stopping: whether to end.
    """

    def __init__(
        self,
        recipe: EvaluateRecipe,
        suite: SuiteManifest,
        claims: Claims,
        progress: Progress,
        stopping: Callable[[], bool],
    ) -> None:
        self._recipe, self._suite, self._claims = recipe, suite, claims
        self._progress, self._stopping = progress, stopping
        self._candidates: tuple[Candidate, ...] = ()
        self._skipped: dict[str, str] = {}
        self._looked, self._changed = 0.0, True
        self._ready: list[Task] = []
        self._busy = self._quiet = time.monotonic()
        """When there was something to do for the last time, and when a look found nothing for the last time."""
        self._given: dict[str, set[str]] = {}
        self._failed: dict[str, tuple[float, float]] = {}
        """By unit, how long it rests after its last failure, and until when."""
        self._complaint = ""

    def more(self, room: int) -> list[Task]:
        """Units of checkpoints that can be claimed, as many as can start at once or a few more."""
        if self._ready:
            given, self._ready = self._ready, []
            return given
        now = time.monotonic()
        if self._stopping() or (not room and self._given):
            return []
        if now - self._looked < self._recipe.watching.poll_s and not self._changed:
            return []
        self._looked, self._changed = now, False
        try:
            self._look()
            there = finished_ids(self._recipe.output)
        except OSError as error:
            self._away(error)
            return []
        missing = [unit for unit in self.units() if unit.id not in there and not self._rests(unit)]
        if any(unit.id not in self._failed for unit in missing):  # what never works keeps nobody waiting
            self._busy = now
        else:
            self._quiet = now
        return self._claimed(missing, room)

    def give_back(self, tasks: list[Task]) -> None:
        """Have tasks given out once more."""
        self._ready = tasks

    def _claimed(self, missing: list[Unit], room: int) -> list[Task]:
        tasks: list[Task] = []
        exams: dict[str, list[Unit]] = {}
        for unit in missing:
            exams.setdefault(unit.exam, []).append(unit)
        for exam, units in exams.items():
            if len(tasks) >= max(1, room) or exam in self._given:
                continue
            try:
                if (fence := self._claims.take(exam)) is None:
                    continue
                there = finished_ids(self._recipe.output)  # another may have finished it just before it let go
            except OSError as error:
                self._claims.release(exam)
                self._away(error)
                break
            left = [unit for unit in units if unit.id not in there]
            if not left:
                self._claims.release(exam)
                continue
            self._given[exam] = {unit.id for unit in left}
            tasks += [Task(unit=unit, fence=fence) for unit in left]
        return tasks

    def units(self) -> list[Unit]:
        """Every checkpoint that is there now, on every shard."""
        return plan_units(self._candidates, self._suite, Generation(max_new_tokens=self._recipe.max_new_tokens))

    def views(self) -> Sequence[View]:
        """Those of all checkpoints that are there now."""
        return views_of(self._candidates)

    def settled(self, unit: Unit, error: str | None) -> None:
        """Let go of a claim behind its last unit."""
        again = unit.id in self._failed
        if error is not None:
            pause = min(_LONGEST_REST_S, 2 * self._failed[unit.id][0] if again else _REST_S)
            self._failed[unit.id] = (pause, time.monotonic() + pause)
        left = self._given.get(unit.exam, set())
        left.discard(unit.id)
        if not left:
            self._given.pop(unit.exam, None)
            self._claims.release(unit.exam)
        self._changed = True
        if error is None or not again:
            self._busy = time.monotonic()

    def over(self) -> bool:
        """Whether nothing was left to do anywhere for as long as was asked for, by looks and not for want of one."""
        idle_s = self._recipe.watching.idle_s
        return idle_s is not None and not self._given and self._quiet - self._busy > idle_s

    def stopped(self) -> bool:
        """Whether somebody wants an end."""
        return self._stopping()

    def _rests(self, unit: Unit) -> bool:
        """Whether a unit failed a short while ago; longer each time, for what failed may have been the storage."""
        return unit.id in self._failed and time.monotonic() < self._failed[unit.id][1]

    def _away(self, error: OSError) -> None:
        """Nothing could be looked at; the next look may be luckier."""
        if str(error) != self._complaint:
            self._complaint = str(error)
            self._progress.say(f"looking again in {self._recipe.watching.poll_s:g} s: {error}")

    def _look(self) -> None:
        found = discover(self._recipe.checkpoints, patient=True)
        self._complaint = ""
        known = {candidate.digest for candidate in self._candidates}
        for candidate in found.candidates:
            if candidate.digest not in known:
                self._progress.say(f"checkpoint {candidate.label} is there")
        for folder, reason in found.skipped.items():
            if self._skipped.get(folder) != reason:
                self._progress.say(f"passing over {folder} for now: {reason}")
        self._candidates, self._skipped = found.candidates, found.skipped


def views_of(candidates: Sequence[Candidate]) -> tuple[View, ...]:
    """What the methods of some checkpoints read, each once."""
    return tuple(dict.fromkeys(candidate.view for candidate in candidates if candidate.view is not None))
