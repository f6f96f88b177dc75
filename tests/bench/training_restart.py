"""How long training stands still when a process of it is killed."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path

from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from pipelines.training.recipe import StageRecipe, TrainRecipe
from pipelines.training.trainer import train
from tests.pipelines.training.killing import meanwhile, notes, visible, workers

STEPS, EVERY = 24, 8


def restart(plain: TrainRecipe) -> str:
    """Kill one of two processes; the seconds until the first step that follows, beside those of the first start."""
    run = Path(plain.output).with_name("restarted")
    tune = replace(plain.tune, steps=STEPS)
    recipe = replace(plain, output=str(run), align=StageRecipe(steps=0), tune=tune, save_every=EVERY, max_failures=1)
    killed = []

    def kill() -> None:
        workers()[-1].kill()
        killed.append(time.time())

    with ray_session(RaySettings(num_cpus=6, object_store_mb=300), Progress(stream=io.StringIO())):
        began = time.time()
        with meanwhile((visible(run, f"tune-{EVERY:08d}"), kill)):
            train(recipe, Progress(stream=io.StringIO()))
    steps = [(note["at"] - note["seconds"], note["seconds"]) for note in notes(run, "step")]
    first, again = steps[0], next(step for step in steps if step[0] > killed[0])
    (resumed,) = notes(run, "resumed")
    lines = ["| from ... to the beginning of the first step | seconds |", "|---|---|"]
    lines.append(f"| `train()` in a running cluster | {first[0] - began:.1f} |")
    lines.append(f"| kill -9 of one of two processes | {again[0] - killed[0]:.1f} |")
    lines.append(f"| of these: reading the state, {resumed['bytes']:,} bytes | {resumed['seconds']:.2f} |")
    return "\n".join(lines)
