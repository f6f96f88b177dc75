from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.progress import Progress
from jobs.labelling import NoVerdictError
from jobs.labelling_run import LabelRun
from qmop.vtcbench.natural.labels import Label, read_labels
from qmop.vtcbench.natural.samples import Sample
from tests.qmop.vtcbench.natural.copies import picture


class Told:
    """Gives the verdicts that it is told to, and notes how many it is asked for at once."""

    refused: list[str] = []  # noqa: RUF012 - never changed

    def __init__(self, decide: Callable[[str], str | None], at_once: int = 1) -> None:
        self.decide, self.now, self.most = decide, 0, 0
        self.at_once, self.reached = at_once, asyncio.Event()

    async def verdict(self, sample: Sample) -> Label:
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now >= self.at_once:
            self.reached.set()
        await self.reached.wait()
        await asyncio.sleep(0)
        self.now -= 1
        code = self.decide(sample.id)
        if code == "fail":
            raise NoVerdictError("status 500", "no")
        return Label(source="gqa", id=sample.id, decision="accept" if code else "reject", dimension=code)


def samples(count: int) -> Iterator[Sample]:
    for number in range(count):
        yield Sample(
            source="gqa", id=str(number), question="q", answers=("a",), task="gqa", scorer="exact_match", load=picture
        )


def runs(file: Path, told: Told, count: int, *, concurrency: int = 4, give_up_after: int = 5) -> tuple[LabelRun, str]:
    run, stream = LabelRun(file, "m", concurrency=concurrency, give_up_after=give_up_after), io.StringIO()
    asyncio.run(run.run(samples(count), count, told, Progress(stream)))
    return run, stream.getvalue()


@pytest.mark.parametrize(("concurrency", "count"), [(1, 9), (4, 25), (16, 3)])
def test_every_sample_is_asked_once_and_no_more_than_so_many_at_once(
    tmp_path: Path, concurrency: int, count: int
) -> None:
    told = Told(lambda name: "LD" if int(name) % 3 == 0 else None, at_once=min(concurrency, count))
    run, said = runs(tmp_path / "l.jsonl", told, count, concurrency=concurrency)
    labels = read_labels(tmp_path / "l.jsonl")

    assert {name for _, name in labels} == {str(number) for number in range(count)}
    assert told.most == min(concurrency, count)
    accepted = sum(label.dimension == "LD" for label in labels.values())
    assert accepted == len(range(0, count, 3))
    outcome = run.outcome(planned=count, reused=Counter(), faults=Counter())
    assert (outcome.accepted, outcome.rejected, outcome.failed) == (accepted, count - accepted, {})
    assert f"labels: {count}/{count} (100 %)  ETA 0:00:00, {accepted} accepted" in said


def test_what_got_no_verdict_is_counted_and_not_written(tmp_path: Path) -> None:
    told = Told(lambda name: "fail" if name in ("3", "7") else "GU")
    run, said = runs(tmp_path / "l.jsonl", told, 10)
    outcome = run.outcome(planned=12, reused=Counter(reject=2), faults=Counter({"gqa: no_picture": 1}))

    assert len(read_labels(tmp_path / "l.jsonl")) == 8
    assert (outcome.accepted, outcome.rejected, outcome.failed) == (8, 2, {"status 500": 2})
    assert outcome.faults == {"gqa: no_picture": 1}
    assert "gqa 3: no verdict, no" in said


def test_a_service_that_never_works_ends_the_run(tmp_path: Path) -> None:
    told = Told(lambda name: "GU" if name == "0" else "fail")

    with pytest.raises(ValueError, match="5 samples in a row got no verdict, the last one because of this: no"):
        runs(tmp_path / "l.jsonl", told, 100, concurrency=1)
    assert len(read_labels(tmp_path / "l.jsonl")) == 1


def test_failures_between_verdicts_do_not_end_the_run(tmp_path: Path) -> None:
    told = Told(lambda name: "fail" if int(name) % 2 else "GU")
    run, _ = runs(tmp_path / "l.jsonl", told, 40, concurrency=1, give_up_after=2)

    assert run.outcome(planned=40, reused=Counter(), faults=Counter()).failed == {"status 500": 20}


def test_counts_that_do_not_add_up_stop_the_run(tmp_path: Path) -> None:
    run, _ = runs(tmp_path / "l.jsonl", Told(lambda _: "GU"), 3)

    with pytest.raises(AssertionError, match="4 samples planned, 3 counted"):
        run.outcome(planned=4, reused=Counter(), faults=Counter())
