"""The main job at its smallest, beside another cluster of the same user and without a compiler; and once more."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from jobs.quickstart import QuickstartRecipe
from tests.fixtures.other_cluster import Other, environment

pytestmark = pytest.mark.pipeline

SMALL = ["--samples", "200", "--suite.count", "50", "--suite.items_per_shard", "25"]
SMALL += ["--train.align.steps", "2", "--train.tune.steps", "4", "--train.log_every", "2", "--train.workers", "1"]


def quickstart(output: Path, home: Path, path: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", "quickstart", "--output", str(output), *SMALL]
    settings = environment(home, PATH=path)
    return subprocess.run(command, env=settings, capture_output=True, text=True, check=False)


def without_compilers(folder: Path) -> str:
    """A PATH with the interpreter's folder and what a shell needs, and no compiler."""
    folder.mkdir()
    for name in ("sh", "bash", "cat", "ls", "uname", "env", "sleep", "ps"):
        if found := next((p for p in ("/bin", "/usr/bin") if Path(p, name).exists()), None):
            (folder / name).symlink_to(Path(found, name))
    (folder / "python3").symlink_to(sys.executable)
    return str(folder)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A run from nothing: where, with what, and what it said."""

    output: Path
    home: Path
    path: str
    first: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def made(other: Other, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The job has run once, beside a cluster that was there before and is there after."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "home").mkdir()
    path = without_compilers(folder / "bin")
    others = {process.pid for process in psutil.Process(other.pid).children(recursive=True)}
    first = quickstart(folder / "run", folder / "home", path)
    assert others <= {process.pid for process in psutil.Process(other.pid).children(recursive=True)}
    return Made(output=folder / "run", home=folder / "home", path=path, first=first)


def test_everything_runs_beside_another_cluster_without_a_compiler(made: Made) -> None:
    first = made.first
    assert first.returncode == 0, first.stderr[-4000:]
    assert "| qmop-16-tune-000004 |" in first.stdout
    assert "| average_pool-16-tune-000002 |" in first.stdout
    assert first.stderr.count("  A: ") == 3
    assert "16 of 144 visual tokens" in first.stderr
    page = (made.output / "results" / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert not (made.home / ".ray").exists()
    left = [p.info["name"] for p in psutil.process_iter(["name", "ppid"]) if _is_ours(p, os.getpid())]
    assert left == []


@pytest.mark.soak
def test_a_second_run_reuses_what_is_complete(made: Made) -> None:
    again = quickstart(made.output, made.home, made.path)
    assert again.returncode == 0, again.stderr[-4000:]
    assert again.stderr.count("reusing all") == 3
    assert "0 units to do, 12 reused" in again.stderr


def _is_ours(process: psutil.Process, parent: int) -> bool:
    """Whether a process that the quickstart started is still there: none may outlive it."""
    return process.info["ppid"] == parent and "ray" in process.info["name"]


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"tokens": 0}, {"corpus_seed": -1}])
def test_a_number_out_of_range_is_refused_before_anything_runs(wrong: dict[str, int]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value}, but it must be at least"):
        QuickstartRecipe(**wrong)  # type: ignore[arg-type]
