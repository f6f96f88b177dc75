"""What tests of whole evaluations share: small recipes, stores to compare, evaluations as processes of their own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from cluster import processes
from cluster.progress import Progress
from pipelines.evaluation.recipe import EvaluateRecipe, SuiteRecipe, TowerRecipe
from pipelines.evaluation.runner import EvaluateResult, evaluate
from pipelines.evaluation.units import finished_ids, records_of_ids

_ROOT = Path(__file__).resolve().parents[3]
SUITE = SuiteRecipe(seed=3, count=24, items_per_shard=8)
UNITS = 9
"""Three checkpoints on three shards."""
Scores = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A folder with `run`, an output of three exports, on a cluster."""

    folder: Path

    def recipe(self, name: str, **changes: Any) -> EvaluateRecipe:
        """An evaluation of the run into a store of that name."""
        plain = {
            "checkpoints": [str(self.folder / "run")],
            "output": str(self.folder / name),
            "rendered": SUITE,
            "batch": 8,
            "max_new_tokens": 3,
            "tower": TowerRecipe(folder=str(self.folder / "features")),
        }
        return EvaluateRecipe(**{**plain, **changes})

    def undisturbed(self) -> Scores:
        """What the store holds if nothing happens, evaluated once."""
        recipe = self.recipe("undisturbed")
        if len(finished_ids(recipe.output)) < UNITS:
            quiet(recipe)
        return scores(recipe.output)

    def command(self, name: str, *more: str) -> list[str]:
        """The same evaluation by `qmop evaluate`."""
        words = f"--output {self.folder / name} --rendered.seed 3 --rendered.count 24 --rendered.items_per_shard 8"
        words += " --ray.address local --ray.num_cpus 2 --ray.object_store_mb 80"
        words += f" --batch 8 --max_new_tokens 3 --tower.folder {self.folder / 'features'}"
        return [sys.executable, "-m", "jobs.cli", "evaluate", *words.split(), *more]


def quiet(recipe: EvaluateRecipe) -> EvaluateResult:
    """Evaluate without a word."""
    return evaluate(recipe, Progress(stream=io.StringIO()))


def scores(store: str) -> Scores:
    """Everything but the seconds of every unit in a store."""
    return {
        name: [asdict(record) | {"seconds": 0.0} for record in records_of_ids([name], store)]
        for name in sorted(finished_ids(store))
    }


def started(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A process of its own, on a cluster of its own, whose words go to a file."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with log.open("wb") as stream:
        return subprocess.Popen(command, cwd=_ROOT, stdout=stream, stderr=subprocess.STDOUT, env=kept)


def killed(process: subprocess.Popen[bytes]) -> None:
    """Kill -9, if it is still there; its cluster ends with it, or is ended."""
    if process.poll() is None:
        below = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        processes.end(below, patience_s=10.0)


def wait_until(moment: Callable[[], Any], what: str, longest_s: float = 300.0) -> None:
    """Look until something is so."""
    deadline = time.monotonic() + longest_s
    while not moment():
        assert time.monotonic() < deadline, f"{what} did not come about in {longest_s:g} s"
        time.sleep(0.02)


def judges() -> list[psutil.Process]:
    """The processes below this one that answer."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if (line := process.cmdline()) and line[0].startswith("ray::") and "Judge" in line[0]:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def unwell(refused: str, deadly: str) -> Any:
    """A judge that refuses the export whose label ends so, dies of another, and never answers on any other.

    Made inside a function, it travels to its process by value, and none of what this file imports is needed there.
    """

    class Unwell:
        def __init__(self, *_: object) -> None: ...

        def run(self, unit: Any, *_: object) -> tuple[int, int]:
            import os  # noqa: PLC0415 - runs in a worker
            import time  # noqa: PLC0415

            if unit.candidate.label.endswith(refused):
                raise RuntimeError("this picture is upside down")
            if unit.candidate.label.endswith(deadly):
                os._exit(1)
            time.sleep(600)
            raise AssertionError

    return ray.remote(Unwell)
