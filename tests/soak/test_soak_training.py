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

from cluster.progress import Progress
from pipelines.corpus.audit import audit
from pipelines.training.recipe import StageRecipe, TrainRecipe
from pipelines.training.trainer import train
from tests.pipelines.training.grounds import ground_in, tuning
from tests.pipelines.training.killing import Moment, curve, killed, notes, under_way, visible

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

SEEDS, STEPS = range(40_000, 40_010), 12
DONE = Path("runs/soak/training-kills.txt")


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
    name = f"tune-{draws.choice((2, 4, 6, 8)):08d}"
    if draws.random() < 0.5:
        return under_way(run, name), f"while {name} was under way"
    delay, seen = draws.uniform(0.0, 3.0), visible(run, name)
    since: list[float] = []

    def late() -> bool:
        if seen() and not since:
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] > delay

    return late, f"{delay:.1f} s after {name}"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_kill_at_any_moment_changes_nothing(plain: TrainRecipe, seed: int) -> None:
    if DONE.exists() and any(line.startswith(f"{seed} ") for line in DONE.read_text().splitlines()):
        pytest.skip("finished in an earlier run")
    draws = random.Random(seed)
    run = Path(plain.output).with_name(f"killed-{seed}")
    workers, zero = draws.choice((1, 2, 3)), draws.choice((1, 2, 3))
    when, words = moment(draws, run)
    rank = draws.randrange(workers)
    with killed(when, rank) as victims:
        train(replace(plain, output=str(run), workers=workers, zero=zero), Progress(stream=io.StringIO()))
    expected, found = curve(Path(plain.output)), curve(run)
    assert sorted(found) == list(range(1, STEPS + 1))
    for step, values in found.items():
        assert values == pytest.approx(expected[step], rel=1e-4), step
    proof = audit(str(run / "ledger" / "tune"))
    assert (proof.steps, proof.samples) == (STEPS, 12 * STEPS)
    resumed = [note["name"] for note in notes(run, "resumed")]
    DONE.parent.mkdir(parents=True, exist_ok=True)
    with DONE.open("a") as record:
        what = f"one of {workers} killed {words}, ZeRO-{zero}" if victims else "ended before the kill"
        record.write(f"{seed} {what}; resumed from {resumed}, {proof.repeated} steps again\n")
