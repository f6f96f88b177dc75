"""The documented way on: the same command after kill -9 of the driver, and no second one beside a living first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster import processes
from cluster.progress import Progress
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
from pipelines.training.states import CARD

pytestmark = [pytest.mark.pipeline, pytest.mark.soak]

ROOT, STEPS, LONGEST_S = Path(__file__).parents[2], 400, 200.0
SMALL = [
    "--align.steps",
    "0",
    "--tune.steps",
    str(STEPS),
    "--tune.exports",
    "1",
    "--save_every",
    "5",
    "--log_every",
    "1",
    "--workers",
    "1",
]
SMALL += ["--micro_batch", "2", "--global_batch", "2", "--trackers", "[]", "--compressor", "average_pool"]


def command(corpus: Path, run: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", "train", f"--corpus={corpus}", f"--output={run}", *SMALL, *more]


@contextmanager
def started(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs beside us; at the end it and all that it has started are gone."""
    with log.open("wb") as stream:
        process = subprocess.Popen(words, cwd=ROOT, stdout=stream, stderr=stream, env={**os.environ})
    family: list[psutil.Process] = []
    try:
        yield process
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
    finally:
        if process.poll() is None:
            family += [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        processes.end(family, patience_s=1)
        process.wait()


def steps(run: Path) -> list[int]:
    """Steps that metrics.jsonl tells of, in order."""
    place = run / "metrics.jsonl"
    notes = map(json.loads, place.read_text().splitlines()) if place.exists() else []
    return [note["step"] for note in notes if note["kind"] == "step"]


def test_a_killed_driver_is_followed_at_once_and_a_living_one_is_not_joined(tmp_path: Path) -> None:
    corpus, run = tmp_path / "corpus", tmp_path / "run"
    made = PrepareRecipe(source="rendered", output=str(corpus), count=50, samples_per_shard=50, seed=5)
    prepare(made, Progress())
    with started(command(corpus, run), tmp_path / "first.log") as first:
        deadline = time.monotonic() + LONGEST_S
        while len(list(run.glob(f"states/*/{CARD}"))) < 2 or len(steps(run)) < 10:
            assert first.poll() is None, (tmp_path / "first.log").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        second = subprocess.run(command(corpus, run), cwd=ROOT, capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert f"output {run} is in use by process {first.pid} on" in second.stderr
        assert first.poll() is None
    told = steps(run)
    assert told == list(range(1, len(told) + 1))
    # Its workers went on for a moment, and perhaps saved a step of which nobody could tell any more.
    saved = max(int(card.parent.name[-8:]) for card in run.glob(f"states/*/{CARD}"))
    assert saved < STEPS
    more = ["--tune.steps", str(saved + 10), "--allow_changes", "tune"]
    again = subprocess.run(command(corpus, run, *more), cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "waiting for a sign of life" not in again.stderr
    assert steps(run) == [*(step for step in told if step <= saved), *range(saved + 1, saved + 11)]
