"""Many samples through one judge: so many at once, every verdict on disk as it comes, counts that add up."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TextIO

from cluster.progress import Progress
from jobs.labelling import NoVerdictError
from qmop.vtcbench.natural.labels import ACCEPT, REJECT, Label
from qmop.vtcbench.natural.samples import Sample

_TITLE = "labels"


class Judging(Protocol):
    """Whatever gives verdicts."""

    @property
    def refused(self) -> list[str]:
        """Parameters that the service does not take."""
        ...  # pragma: no cover

    async def verdict(self, sample: Sample) -> Label:
        """A verdict, or `NoVerdictError`."""
        ...  # pragma: no cover


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a labelling came to; `planned == accepted + rejected + sum(failed.values())`.

    Attributes:
        planned: samples to label, those of earlier runs included.
        accepted: samples with a dimension.
        rejected: samples without one.
        failed: samples without a verdict, by reason; the next run asks about them again.
        faults: rows of the sources that are no samples, by source and reason.
    """

    planned: int
    accepted: int
    rejected: int
    failed: dict[str, int]
    faults: dict[str, int]


class LabelRun:
    """One run over samples.

    Args:
        file: JSONL that verdicts are appended to.
        model: noted with each of them.
        concurrency: samples under way at once.
        give_up_after: failures in a row that end the run.
    """

    def __init__(self, file: Path, model: str, *, concurrency: int, give_up_after: int) -> None:
        self._file, self._model = file, model
        self._concurrency, self._give_up_after = concurrency, give_up_after
        self._decisions: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._in_a_row = 0
        self._started = time.monotonic()

    async def run(self, samples: Iterator[Sample], total: int, judge: Judging, progress: Progress) -> None:
        """Ask about every sample.

        Args:
            samples: read one by one, a few ahead of the requests.
            total: how many there are.
            judge: to ask.
            progress: hears how far it is.

        Raises:
            ValueError: if the service does not work at all.
        """
        self._started = time.monotonic()
        queue: asyncio.Queue[Sample | None] = asyncio.Queue(self._concurrency)
        with self._file.open("a", encoding="utf-8") as stream:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._feed(samples, queue))
                    for _ in range(min(self._concurrency, total)):
                        group.create_task(self._work(queue, judge, stream, total, progress))
            except ExceptionGroup as errors:  # one task's trouble ended the others
                raise errors.exceptions[0] from errors

    def outcome(self, *, planned: int, reused: Counter[str], faults: Counter[str]) -> Outcome:
        """The counts, with those of earlier runs."""
        decisions = self._decisions + reused
        outcome = Outcome(
            planned=planned,
            accepted=decisions[ACCEPT],
            rejected=decisions[REJECT],
            failed=dict(self._failed),
            faults=dict(faults),
        )
        counted = outcome.accepted + outcome.rejected + sum(outcome.failed.values())
        assert counted == planned, f"{planned} samples planned, {counted} counted"
        return outcome

    async def _feed(self, samples: Iterator[Sample], queue: asyncio.Queue[Sample | None]) -> None:
        while (sample := await asyncio.to_thread(next, samples, None)) is not None:
            await queue.put(sample)
        for _ in range(self._concurrency):
            await queue.put(None)

    async def _work(
        self, queue: asyncio.Queue[Sample | None], judge: Judging, stream: TextIO, total: int, progress: Progress
    ) -> None:
        while (sample := await queue.get()) is not None:
            try:
                label = await judge.verdict(sample)
            except NoVerdictError as error:
                self._count_failure(sample, error, progress)
            else:
                self._in_a_row = 0
                self._decisions[label.decision] += 1
                stream.write(label.to_json(model=self._model) + "\n")
                stream.flush()
            done = self._decisions.total() + self._failed.total()
            progress.update(_TITLE, done, total, self._note(done, total, judge))

    def _count_failure(self, sample: Sample, error: NoVerdictError, progress: Progress) -> None:
        self._failed[error.reason] += 1
        self._in_a_row += 1
        progress.say(f"{sample.source} {sample.id}: no verdict, {error}")
        if self._in_a_row >= self._give_up_after:
            raise ValueError(f"{self._in_a_row} samples in a row got no verdict, the last one because of this: {error}")

    def _note(self, done: int, total: int, judge: Judging) -> str:
        left = (time.monotonic() - self._started) / done * (total - done)
        words = [f"ETA {timedelta(seconds=round(left))}", f"{self._decisions[ACCEPT]} accepted"]
        if self._failed:
            words.append(f"{self._failed.total()} without a verdict")
        if judge.refused:
            words.append(f"the service takes no {', '.join(judge.refused)}")
        return ", ".join(words)
