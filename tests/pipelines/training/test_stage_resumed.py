"""Training that is killed goes on as if nothing had happened, with as many processes as there are then."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import qmop
from cluster.failures import JobFailedError
from cluster.progress import Progress
from cluster.surroundings import environment
from pipelines.corpus.audit import audit
from pipelines.training.exports import local_copy
from pipelines.training.trainer import train
from tests.fixtures.s3_server import BUCKET, variables
from tests.pipelines.training.grounds import ground_in, tuning
from tests.pipelines.training.killing import Moment, curve, killed, notes, under_way, visible

pytestmark = pytest.mark.pipeline
STEPS = 9


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, s3_process: str) -> Iterator[Path]:
    """A Ray session that reaches an S3 and signs its states, a small corpus and a base with random weights."""
    surroundings = {**variables(s3_process), "QMOP_STATE_KEY": "a secret"}
    with environment(surroundings), ground_in(tmp_path_factory.mktemp("resume"), samples_per_shard=20) as folder:
        yield folder


@pytest.fixture(scope="module")
def undisturbed(ground: Path) -> dict[int, tuple[float, ...]]:
    """The curve of one process that nobody killed."""
    asked = tuning(ground, "undisturbed", workers=1)
    train(asked, Progress(stream=io.StringIO()))
    return curve(ground / "undisturbed")


def _require_same(run: Path | str, undisturbed: dict[int, tuple[float, ...]], tolerance: float = 0.0) -> None:
    """Every step went as without a kill; one that was taken twice differs by the tolerance."""
    found = curve(run, tolerance=tolerance)
    assert sorted(found) == list(range(1, STEPS + 1))
    for step, values in found.items():
        assert values == pytest.approx(undisturbed[step], rel=1e-4), step


@pytest.mark.soak
def test_a_run_goes_on_with_other_processes_and_another_zero_stage(
    ground: Path, undisturbed: dict[int, tuple[float, ...]]
) -> None:
    run = ground / "moved"
    first = tuning(ground, "moved", workers=2, zero=3, max_failures=0)
    with (
        killed(under_way(run, "tune-00000004")) as victims,
        pytest.raises(JobFailedError, match=r"training stopped: .* the same command goes on from"),
    ):
        train(first, Progress(stream=io.StringIO()))
    assert len(victims) == 1
    train(replace(first, workers=3, zero=1), Progress(stream=io.StringIO()))
    assert notes(run, "resumed")[0]["name"] in {"tune-00000002", "tune-00000004"}
    _require_same(run, undisturbed, tolerance=1e-4)
    assert audit(str(run / "ledger" / "tune")).worlds in ((2, 3), (3,))


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param([(under_way, 6, {4, 6})], id="during a save"),
        pytest.param(
            [(visible, 2, {2, 4}), (under_way, 6, {4, 6})], id="between saves and during one", marks=pytest.mark.soak
        ),
    ],
)
def test_workers_that_are_killed_cost_an_interval_each_and_change_nothing(
    ground: Path,
    undisturbed: dict[int, tuple[float, ...]],
    s3_server: str,
    moments: list[tuple[Callable[[str, str], Moment], int, set[int]]],
) -> None:
    """Moments, and the steps from which a run may go on then.

    In S3: all that a run keeps lies in a bucket: states, ledger, exports, notes, and what Ray Train keeps.
    """
    assert s3_server
    run = f"s3://{BUCKET}/killed-{len(moments)}"
    with killed(*(moment(run, f"tune-{step:08d}") for moment, step, _ in moments)) as victims:
        train(tuning(ground, "nothing", output=run, max_failures=2), Progress(stream=io.StringIO()))
    assert len(victims) == len(moments)
    assert not (ground / "nothing").exists()
    for note, (_, _, saved) in zip(notes(run, "resumed"), moments, strict=True):
        assert note["name"] in {f"tune-{step:08d}" for step in saved}
    _require_same(run, undisturbed)
    proof = audit(f"{run}/ledger/tune")
    assert (proof.steps, proof.samples, proof.attempts) == (STEPS, 12 * STEPS, 1 + len(moments))
    with local_copy(f"{run}/checkpoints/qmop-16-tune-{STEPS:06d}") as folder:
        assert qmop.load(folder)[1].visual_tokens == 16


@pytest.mark.usefixtures("undisturbed")
def test_another_recipe_is_refused_with_the_difference_unless_it_is_allowed(ground: Path) -> None:
    asked = tuning(ground, "undisturbed", seed=3)
    with pytest.raises(ValueError, match=r"another recipe \(seed: 0 -> 3\): .* --allow_changes seed$"):
        train(asked, Progress(stream=io.StringIO()))
    assert not train(replace(asked, allow_changes=("seed",)), Progress(stream=io.StringIO())).trained
