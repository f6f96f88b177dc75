"""Training as a job of a cluster that somebody else started, with token authentication."""

import re
import sys
from pathlib import Path

import pytest

from tests.fixtures.other_cluster import CPUS, Other, submit

pytestmark = [pytest.mark.pipeline, pytest.mark.soak]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    from cluster.progress import Progress  # noqa: PLC0415
    from pipelines.corpus.prepare import prepare  # noqa: PLC0415
    from pipelines.corpus.recipe import PrepareRecipe  # noqa: PLC0415

    output = str(tmp_path_factory.mktemp("submit") / "corpus")
    prepare(PrepareRecipe(source="rendered", output=output, count=100, samples_per_shard=50), Progress())
    return output


def training(corpus: str, output: Path, *more: str) -> list[str]:
    sizes = ["--micro_batch", "4", "--global_batch", "8", "--align.steps", "1", "--tune.steps", "2", "--log_every", "1"]
    return [sys.executable, "-m", "jobs.cli", "train", "--corpus", corpus, "--output", str(output), *sizes, *more]


def test_a_submitted_training_logs_its_steps_and_losses(other: Other, corpus: str, tmp_path: Path) -> None:
    done = submit(other, *training(corpus, tmp_path / "run", "--workers", "1"))
    assert done.returncode == 0, done.stdout + done.stderr
    for step in ("align step 1/1  loss ", "tune step 1/2  loss ", "tune step 2/2  loss "):
        assert step in done.stdout
    assert (tmp_path / "run" / "checkpoints" / "qmop-16-tune-000002" / "checkpoint.json").is_file()


def test_too_few_cpus_are_told_within_half_a_minute(other: Other, corpus: str, tmp_path: Path) -> None:
    done = submit(other, *training(corpus, tmp_path / "wide", "--workers", "2", "--cpus_per_worker", "4"))
    assert done.returncode == 1  # what `ray job submit` makes of any failure
    assert f"needs 9 CPUs ({CPUS}" in done.stdout
    assert "Traceback" not in done.stdout
    stamps = [float(stamp) for stamp in re.findall(r"^ *(\d+\.\d)s ", done.stdout, re.MULTILINE)]
    assert stamps, done.stdout
    assert stamps[-1] < 30  # seconds of the job's own clock: submission and imports are not ours to bound
