"""One checkpoint at a time, judged beside other work: on resources of its own and within a time limit.

The units are those of `evaluate` and land in the same kind of store, so that an evaluation finds them done.
"""

from __future__ import annotations

import threading
import time
from functools import cached_property
from typing import Any

import ray

from cluster.progress import Progress
from pipelines.evaluation.discovery import discover
from pipelines.evaluation.judge import Judge
from pipelines.evaluation.recipe import EvaluateRecipe
from pipelines.evaluation.suites import prepare_suite
from pipelines.evaluation.suspicion import WorkerError
from pipelines.evaluation.units import Generation, Unit, finished, plan_units, records_of_ids
from qmop.vtcbench.records import Record
from qmop.vtcbench.suite import SuiteManifest

_LOOK_S, _ATTEMPTS = 1.0, 3


class CancelledError(Exception):
    """Nobody waits for the answer any more."""


class LoneJudge:
    """Judges one checkpoint after another, each in a process that ends with it.

    Args:
        asked: store, suite and generation; its checkpoints do not matter.
        num_cpus: of the process.
        num_gpus: of the process.
        time_limit_s: seconds for one checkpoint, waiting for resources included; the suite is drawn before they count.
        progress: hears of the suite.
        cancelled: ends what is under way.
    """

    def __init__(
        self,
        asked: EvaluateRecipe,
        *,
        num_cpus: float,
        num_gpus: float,
        time_limit_s: float,
        progress: Progress,
        cancelled: threading.Event,
    ) -> None:
        self._asked, self._time_limit_s = asked, time_limit_s
        self._num_cpus, self._num_gpus = num_cpus, num_gpus
        self._progress, self._cancelled = progress, cancelled

    @cached_property
    def suite(self) -> SuiteManifest:
        """Drawn when it is first needed."""
        return prepare_suite(self._asked, self._progress)

    def __call__(self, uri: str) -> list[Record]:
        """The records of a checkpoint; what the store holds is not computed again.

        Raises:
            TimeoutError: if it takes too long; units that were done are kept.
            CancelledError: if it was cancelled.
            RayError: if the process failed, or the third in a row was not fit to answer.
            ValueError: if the checkpoint is damaged.
            FileNotFoundError: if there is none.
        """
        suite, store = self.suite, self._asked.output
        units = plan_units(discover([uri]).candidates, suite, Generation(max_new_tokens=self._asked.max_new_tokens))
        if missing := [unit for unit in units if not finished(unit, store)]:
            self._answer(missing, suite)
        return records_of_ids([unit.id for unit in units], store)

    def _answer(self, units: list[Unit], suite: SuiteManifest) -> None:
        deadline = time.monotonic() + self._time_limit_s
        judge, done, attempts = self._judge(suite), 0, 1
        doubts: dict[str, tuple[str, ...]] = {}
        try:
            while done < len(units):
                running = judge.run.remote(units[done], **doubts)
                self._await(running, deadline, f"{done} of {len(units)} units done")
                try:
                    fit, doubts = not ray.get(running).worn, {}
                    done, attempts = done + 1, 1
                except WorkerError as error:
                    if attempts == _ATTEMPTS:
                        raise
                    fit, doubts, attempts = False, {"doubted": error.doubted}, attempts + 1
                if not fit:
                    ray.kill(judge)
                    judge = self._judge(suite)
        finally:
            ray.kill(judge)

    def _judge(self, suite: SuiteManifest) -> Any:
        own: Any = Judge.options(num_cpus=self._num_cpus, num_gpus=self._num_gpus)  # type: ignore[attr-defined]
        threads = max(1, int(self._num_cpus))
        return own.remote(self._asked.output, suite.folder, self._asked.batch, threads, self._asked.tower)

    def _await(self, running: Any, deadline: float, so_far: str) -> None:
        while not ray.wait([running], timeout=max(0.0, min(_LOOK_S, deadline - time.monotonic())))[0]:
            if self._cancelled.is_set():
                raise CancelledError
            if time.monotonic() >= deadline:
                raise TimeoutError(f"it took longer than {self._time_limit_s:g} s, with {so_far}")
