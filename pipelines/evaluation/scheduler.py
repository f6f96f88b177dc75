"""Units over worker processes: each keeps its checkpoint, pictures are looked at once, and what dies is done again."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster.progress import Progress
from pipelines.evaluation.judge import Done, Judge
from pipelines.evaluation.pace import Pace
from pipelines.evaluation.recipe import EvaluateRecipe
from pipelines.evaluation.suspicion import WorkerError
from pipelines.evaluation.units import Unit
from qmop.views import View
from qmop.vtcbench.suite import SuiteManifest

_WAIT_S, _ATTEMPTS = 1.0, 3
_PAUSES_S = (1.0, 5.0)
"""Between attempts, where a storage may only be away for a moment."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A unit to do, under the claim of a number."""

    unit: Unit
    fence: int = 0


class Source(Protocol):
    """Where tasks come from."""

    def more(self, room: int) -> list[Task]:
        """Tasks that were not given out yet; called again and again, `room` being how many could start at once."""

    def views(self) -> Sequence[View]:
        """What the methods of all checkpoints at hand read."""

    def settled(self, unit: Unit, error: str | None) -> None:
        """A unit is done, or has failed for good."""

    def over(self) -> bool:
        """Whether nothing more will come."""

    def stopped(self) -> bool:
        """Whether even what runs is of no interest any more."""


@dataclass
class Tally:
    """What was done.

    Attributes:
        done: ids of units whose records are ours.
        others: how many somebody else committed meanwhile.
        failed: name of a unit to what was wrong.
        looked: pictures that went through a shared tower.
    """

    done: set[str] = field(default_factory=set)
    others: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    looked: int = 0


class Spread:
    """Runs what a source gives on worker processes.

    Args:
        source: of tasks.
        suite: that is asked.
        recipe: of the evaluation.
        progress: hears of every unit.
    """

    def __init__(self, source: Source, suite: SuiteManifest, recipe: EvaluateRecipe, progress: Progress) -> None:
        self._source, self._suite, self._recipe, self._progress = source, suite, recipe, progress
        self._waiting: list[Task] = []
        self._running: dict[Any, tuple[Any, Task]] = {}
        self._idle: list[Any] = []
        self._workers = 0
        self._holds: dict[Any, str] = {}
        self._attempts: Counter[str] = Counter()
        self._doubted: dict[str, tuple[str, ...]] = {}
        """By unit, the items that a worker failed at before it was ended."""
        self._later: list[tuple[float, Task]] = []
        """Tasks whose next attempt waits, and until when."""
        self._looked: set[tuple[str, str]] = set()
        self._name = uuid.uuid4().hex
        self._pace = Pace()
        self.tally = Tally()

    def start_workers(self) -> None:
        """Start all workers now and wait until they are there; otherwise they start with the first tasks."""
        self._idle = [self._new_worker() for _ in range(self._recipe.workers)]
        ray.get([worker.__ray_ready__.remote() for worker in self._idle])

    def run(self) -> Tally:
        """Go on until the source is over."""
        try:
            while not self._source.stopped():
                self._waiting += [*self._due(), *self._source.more(max(0, self._recipe.workers - len(self._running)))]
                self._start()
                if self._running:
                    ready, _ = ray.wait(list(self._running), num_returns=1, timeout=_WAIT_S)
                    for reference in ready:
                        self._take(reference)
                elif not self._later and self._source.over():
                    break
                else:
                    time.sleep(min(_WAIT_S, self._recipe.watching.poll_s))
        finally:
            for worker in [*self._idle, *(worker for worker, _ in self._running.values())]:
                ray.kill(worker)
        return self.tally

    def _due(self) -> list[Task]:
        """Tasks that have waited long enough."""
        now = time.monotonic()
        due = [task for until, task in self._later if until <= now]
        self._later = [(until, task) for until, task in self._later if until > now]
        return due

    def _start(self) -> None:
        while self._waiting and (self._idle or self._workers < self._recipe.workers):
            worker = self._idle.pop() if self._idle else self._new_worker()
            task = self._next(self._holds.get(worker))
            self._waiting.remove(task)
            self._holds[worker] = task.unit.candidate.digest
            doubted = self._doubted.get(task.unit.id, ())
            running = worker.run.remote(task.unit, task.fence, tuple(self._source.views()), doubted)
            self._running[running] = (worker, task)
            self._pace.running(True)

    def _next(self, held: str | None) -> Task:
        """A task of the checkpoint that a worker holds, else of one that nobody holds; of pictures nobody looks at."""
        elsewhere = set(self._holds.values())
        under_way = {_sight(task.unit) for _, task in self._running.values()} - self._looked

        def rank(task: Task) -> tuple[int, bool]:
            digest = task.unit.candidate.digest
            return (0 if digest == held else 1 if digest not in elsewhere else 2), _sight(task.unit) in under_way

        return min(self._waiting, key=rank)

    def _new_worker(self) -> Any:
        self._workers += 1
        recipe = self._recipe
        own: Any = Judge.options(  # type: ignore[attr-defined]
            num_cpus=recipe.threads, num_gpus=recipe.num_gpus, max_restarts=0, max_task_retries=0
        )
        return own.remote(recipe.output, self._suite.folder, recipe.batch, recipe.threads, recipe.tower, self._name)

    def _take(self, reference: Any) -> None:
        """What became of a unit."""
        worker, task = self._running.pop(reference)
        self._pace.running(bool(self._running))
        unit = task.unit
        self._attempts[unit.id] += 1
        try:
            done = ray.get(reference)
        except RayError as error:
            # all but an exception of its own means that the process is gone, for want of memory, say
            self._let_go(worker, fit=isinstance(error, RayTaskError) and not isinstance(error, WorkerError))
            self._fail(task, error)
        else:
            self._let_go(worker, fit=not done.worn)
            self._note(unit, done)

    def _let_go(self, worker: Any, *, fit: bool) -> None:
        """A worker has nothing to do; one that is not fit to do anything more is ended, and another may start."""
        if fit:
            self._idle.append(worker)
            return
        ray.kill(worker)
        self._workers -= 1
        self._holds.pop(worker, None)

    def _note(self, unit: Unit, done: Done) -> None:
        self._doubted.pop(unit.id, None)
        self._looked.add(_sight(unit))
        self._pace.did(done.items)
        self.tally.looked += done.looked
        if done.ours:
            self.tally.done.add(unit.id)
        self.tally.others += not done.ours
        self.tally.failed.pop(unit.name, None)
        self._source.settled(unit, None)
        settled = len(self.tally.done) + self.tally.others + len(self.tally.failed)
        total = settled + len(self._running) + len(self._waiting) + len(self._later)
        self._progress.update("units", settled, total, ", ".join(filter(None, [unit.name, self._left()])))
        if done.poisoned:
            self._progress.say(f"{unit.name}: {done.poisoned} items could not be answered and count as wrong")

    def _left(self) -> str:
        """How long what is known will take at the pace so far."""
        under_way, later = (task for _, task in self._running.values()), (task for _, task in self._later)
        return self._pace.left(sum(task.unit.shard.count for task in [*self._waiting, *under_way, *later]))

    def _fail(self, task: Task, error: RayError) -> None:
        """Do it again, or give it up: what workers or the storage are to blame for deserves another attempt."""
        unit, reason = task.unit, str(error).strip().splitlines()[-1].strip()
        transient = not isinstance(error, RayTaskError) or isinstance(error, WorkerError | OSError)
        if isinstance(error, WorkerError):
            self._doubted[unit.id] = error.doubted
        if transient and self._attempts[unit.id] < _ATTEMPTS:
            self._progress.say(f"{unit.name} again, attempt {self._attempts[unit.id] + 1} of {_ATTEMPTS}: {reason}")
            pause = 0.0 if isinstance(error, RayActorError) else _PAUSES_S[self._attempts[unit.id] - 1]
            self._later.append((time.monotonic() + pause, task))
            return
        self._doubted.pop(unit.id, None)
        del self._attempts[unit.id]  # whoever watches may give it out once more
        self.tally.failed[unit.name] = reason
        self._source.settled(unit, reason)
        self._progress.say(f"unit {unit.name} failed: {reason}")


def _sight(unit: Unit) -> tuple[str, str]:
    """Whose pictures a unit looks at, and through which kind of tower."""
    return unit.shard.url, "" if unit.candidate.view is None else unit.candidate.view.tower + unit.candidate.view.shown
