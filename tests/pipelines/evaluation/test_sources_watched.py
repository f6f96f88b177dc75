"""Schedulers that watch one folder: who does what, and how they end."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from pipelines.evaluation.recipe import WatchRecipe
from pipelines.evaluation.store import read_index
from pipelines.evaluation.units import facts_of, finished_ids
from tests.pipelines.evaluation.grounds import UNITS, Ground, killed, quiet, scores, started, wait_until
from tests.pipelines.evaluation.test_discovery import export

pytestmark = pytest.mark.pipeline
_COUNTS = re.compile(r"units: (\d+) planned = (\d+) done \+ (\d+) reused \+ (\d+) failed")


def watching(ground: Ground, name: str, folder: str, *more: str) -> list[str]:
    return ground.command(
        name, "--checkpoints", f"[{ground.folder / folder}]", "--watch", "--watching.poll_s", "0.2", *more
    )


def counts(log: Path) -> tuple[int, ...]:
    found = _COUNTS.search(log.read_text())
    assert found is not None, log.read_text()
    return tuple(map(int, found.groups()))


def test_two_watch_one_folder_while_checkpoints_appear_and_each_unit_is_done_once(ground: Ground) -> None:
    wanted, store = ground.undisturbed(), str(ground.folder / "watched")
    logs = [ground.folder / f"watch-{number}.log" for number in range(2)]
    command = watching(ground, "watched", "fresh", "--workers", "1", "--watching.idle_s", "6")
    both = [started(command, log) for log in logs]
    try:
        for step in (1, 2, 3):
            export(ground.folder / "fresh", step, seed=step)
            wait_until(lambda step=step: len(finished_ids(store)) >= 3 * (step - 1) + 1, f"a unit of export {step}")
        codes = [process.wait() for process in both]
    finally:
        for process in both:
            killed(process)
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
    assert scores(store) == wanted
    told = [counts(log) for log in logs]
    assert [one[0] for one in told] == [UNITS, UNITS]
    assert sum(one[1] for one in told) == UNITS
    assert all(facts_of(name, store)["fence"] == 1 for name in finished_ids(store))
    assert len(read_index(store)[0]) == 72


def test_an_end_that_is_asked_for_is_clean_and_lets_others_go_on_at_once(ground: Ground) -> None:
    store, log = str(ground.folder / "asked"), ground.folder / "asked.log"
    process = started(watching(ground, "asked", "run", "--workers", "1", "--watching.lease_s", "600"), log)
    try:
        wait_until(lambda: finished_ids(store) or process.poll() is not None, "a first unit")
        process.send_signal(signal.SIGTERM)
        code = process.wait()
        planned, done, reused, failed = counts(log)
        assert (planned, reused) == (9, 0)
        assert done + failed == 9
        assert code == (1 if failed else 0), log.read_text()
    finally:
        killed(process)
    watched = WatchRecipe(poll_s=0.2, idle_s=0.0)
    result = quiet(ground.recipe("asked", watch=True, watching=watched, workers=1))
    assert (result.done, result.reused, result.failed) == (9 - done, done, {})
    assert scores(store) == ground.undisturbed()
