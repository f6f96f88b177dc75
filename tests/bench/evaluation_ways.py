"""One way to answer a suite, in a process that begins when told: `python -m tests.bench.evaluation_ways WAY FOLDER`.

`FOLDER/up-WAY` appears when it can begin, it begins when `FOLDER/go-WAY` appears, and leaves `FOLDER/done-WAY`.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch

from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from jobs import evaluate as job
from pipelines.corpus.images import decode_image
from pipelines.evaluation.answering import batches_of
from pipelines.evaluation.discovery import discover
from pipelines.evaluation.recipe import EvaluateRecipe, TowerRecipe
from pipelines.evaluation.scheduler import Spread
from pipelines.evaluation.sources import AtOnce
from pipelines.evaluation.units import Generation, plan_units
from qmop.answering import answer
from qmop.loading import load
from qmop.vtcbench.rendered import RenderedItem
from qmop.vtcbench.suite import load_suite, read_shard

CHECKPOINTS = {"average_pool": 16, "qmop": 16, "tokenpacker": 16, "prune": 16}
WORKERS, BATCH, LENGTH = 2, 50, 8
"""Processes of ours; questions at once; longest answer in tokens."""
EVERY = {"single": 7, "batched": 3, "threaded": 3}
"""Of so many items a slower way answers one, so that all take about as long; families take turns from item to item, and
there are twenty, so that no such number may divide with twenty, or a way would be spared some of them."""
_POLL_S = 0.02


def recipe_in(folder: Path, way: str) -> EvaluateRecipe:
    """Our evaluation."""
    return EvaluateRecipe(
        checkpoints=[str(folder / "checkpoints" / name) for name in CHECKPOINTS],
        output=str(folder / f"store-{way}"),
        suite=str(folder / "suite"),
        workers=WORKERS,
        batch=BATCH,
        max_new_tokens=LENGTH,
        tower=TowerRecipe(shared=way == "ours", folder=str(folder / "features")),
        ray=RaySettings(address="local", num_cpus=WORKERS, object_store_mb=80),
    )


def told(folder: Path, way: str) -> None:
    """Say that this way can begin, and wait until it may."""
    (folder / f"up-{way}").touch()
    while not (folder / f"go-{way}").exists():
        time.sleep(_POLL_S)


def say(folder: Path, way: str, name: str, **facts: float) -> None:
    """Leave what was measured."""
    draft = folder / f"{name}-{way}.part"
    draft.write_text(json.dumps(facts))
    draft.rename(folder / f"{name}-{way}")


def ours(folder: Path, way: str) -> None:
    """What `qmop evaluate` does once Ray and its workers are up."""
    recipe, progress = recipe_in(folder, way), Progress(stream=io.StringIO())
    suite = load_suite(folder / "suite")
    units = plan_units(discover(recipe.checkpoints).candidates, suite, Generation(max_new_tokens=LENGTH))
    with ray_session(recipe.ray, progress):
        spread = Spread(AtOnce(units), suite, recipe, progress)
        spread.start_workers()
        told(folder, way)
        tally = spread.run()
        say(folder, way, "done", items=len(tally.done) * suite.count / len(suite.shards), looked=tally.looked)
    again(recipe, folder, way)


def again(recipe: EvaluateRecipe, folder: Path, way: str) -> None:
    """The same evaluation with nothing missing, table included."""
    began = time.monotonic()
    with redirect_stdout(io.StringIO()):
        code = job.run(replace(recipe), Progress(stream=io.StringIO()))
    assert code == 0, "a finished evaluation is complete"
    say(folder, way, "again", seconds=time.monotonic() - began)


def loop(folder: Path, way: str) -> None:
    """One process without Ray: a question at a time, or batches of like length."""
    torch.set_num_threads(1 if way == "batched" else 2)
    suite = load_suite(folder / "suite")
    items = [item for shard in suite.shards for item in read_shard(suite.folder, shard)]
    some = items[:: EVERY[way]]
    told(folder, way)
    for name in CHECKPOINTS:
        model, processor = load(folder / "checkpoints" / name)
        parts = [[item] for item in some] if way == "single" else batches_of(processor, some, BATCH)
        for part in parts:
            ask(model, processor, part)
    say(folder, way, "done", items=len(some) * len(CHECKPOINTS))


def ask(model: object, processor: object, part: list[RenderedItem]) -> None:
    """Answers to some questions."""
    pictures = [decode_image(rendered.image) for rendered in part]
    questions = [rendered.item.question for rendered in part]
    answer(model, processor, pictures, questions, max_new_tokens=LENGTH)  # type: ignore[arg-type]


RUN: dict[str, Callable[[Path, str], None]] = {
    "single": loop,
    "batched": loop,
    "threaded": loop,
    "apart": ours,
    "ours": ours,
}

if __name__ == "__main__":
    RUN[sys.argv[1]](Path(sys.argv[2]), sys.argv[1])
