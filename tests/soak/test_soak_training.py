"""Long repetition over training: a worker is killed at a random moment, also while a state is under way.

Seeded and resumable: finished seeds are listed in runs/soak/training-kills.txt and skipped; delete it to start over.
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.failures import JobFailedError
from cluster.progress import Progress
from pipelines.corpus.audit import audit
from pipelines.training.recipe import StageRecipe, TrainRecipe
from pipelines.training.trainer import train
from tests.pipelines.training.grounds import ground_in, tuning
from tests.pipelines.training.killing import Moment, curve, killed, notes, under_way, visible

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

SEEDS, STEPS = range(40_000, 40_010), 24
RECORDS = Path("runs/soak")
DONE = RECORDS / "training-kills.txt"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainRecipe]:
    """A recipe whose run nobody disturbed stands in its output folder."""
    with ground_in(tmp_path_factory.mktemp("soak"), samples_per_shard=20) as folder:
        tune = StageRecipe(steps=STEPS, projector_rate=1e-3, language_rate=1e-3)
        recipe = tuning(folder, "undisturbed", workers=1, tune=tune)
        train(recipe, Progress(stream=io.StringIO()))
        yield recipe


def moment(draws: random.Random, run: Path) -> tuple[Moment, str]:
    """While a state is under way, or up to three seconds after it is visible."""
    name = f"tune-{draws.choice((2, 4, 8, 12, 16)):08d}"
    if draws.random() < 0.5:
        return under_way(run, name), f"while {name} was under way"
    delay, seen = draws.uniform(0.0, 3.0), visible(run, name)
    since: list[float] = []

    def late() -> bool:
        if seen() and not since:
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] > delay

    return late, f"{delay:.1f} s after {name}"


def require_same(plain: TrainRecipe, run: Path) -> None:
    """Every step was taken, and went as in the run that nobody disturbed; sums are taken in another order."""
    expected, found = curve(Path(plain.output)), curve(run, tolerance=1e-4)
    assert sorted(found) == list(range(1, STEPS + 1))
    for step, values in found.items():
        assert values == pytest.approx(expected[step], rel=1e-4), step


@pytest.mark.parametrize("seed", SEEDS)
def test_a_kill_at_any_moment_changes_nothing(plain: TrainRecipe, seed: int) -> None:
    if DONE.exists() and any(line.startswith(f"{seed} ") for line in DONE.read_text().splitlines()):
        pytest.skip("finished in an earlier run")
    draws = random.Random(seed)
    run = Path(plain.output).with_name(f"killed-{seed}")
    workers, zero = draws.choice((1, 2, 3)), draws.choice((1, 2, 3))
    when, words = moment(draws, run)
    rank = draws.randrange(workers)
    with killed(when, which=rank) as victims:
        train(replace(plain, output=str(run), workers=workers, zero=zero), Progress(stream=io.StringIO()))
    require_same(plain, run)
    proof = audit(str(run / "ledger" / "tune"))
    assert (proof.steps, proof.samples) == (STEPS, 12 * STEPS)
    resumed = [note["name"] for note in notes(run, "resumed")]
    DONE.parent.mkdir(parents=True, exist_ok=True)
    with DONE.open("a") as record:
        what = f"one of {workers} killed {words}, ZeRO-{zero}" if victims else "ended before the kill"
        record.write(f"{seed} {what}; resumed from {resumed}, {proof.repeated} steps again\n")


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_then_one_then_four_processes_take_the_same_steps(plain: TrainRecipe, zero: int) -> None:
    done = RECORDS / f"training-moved-{zero}.txt"
    if done.exists():
        pytest.skip("finished in an earlier run")
    run = Path(plain.output).with_name(f"moved-{zero}")
    recipe = replace(plain, output=str(run), zero=zero, max_failures=0)  # type: ignore[arg-type]
    for workers, state in ((2, "tune-00000006"), (1, "tune-00000014")):
        with killed(visible(run, state)), pytest.raises(JobFailedError, match="the same command goes on from"):
            train(replace(recipe, workers=workers), Progress(stream=io.StringIO()))
    train(replace(recipe, workers=4), Progress(stream=io.StringIO()))
    require_same(plain, run)
    proof = audit(str(run / "ledger" / "tune"))
    assert (proof.steps, proof.samples, proof.attempts) == (STEPS, 12 * STEPS, 3)
    resumed = [note["name"] for note in notes(run, "resumed")]
    done.write_text(f"ZeRO-{zero}: processes {proof.worlds}, resumed from {resumed}, {proof.repeated} steps again\n")
