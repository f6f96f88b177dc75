"""The first losses of every training recipe: `python -m tests.pipelines.training.golden_losses [--write]`.

A recipe's numbers (method, rates, schedules, clipping) over the embedded base, in one process with one thread, from
prepared shards to the optimiser's step; Ray alone is left out. `--write` makes the golden file anew, after a change
that is meant to change losses.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from cluster.ports import free_port
from cluster.progress import Progress
from jobs.recipes_reader import parse_recipe
from pipelines.corpus.feed import CorpusFeed, _read_span
from pipelines.corpus.manifest import load_manifest
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
from pipelines.training import preemption, stage
from pipelines.training.engine import quiet_start
from pipelines.training.plans import LoopSettings, stage_plans
from pipelines.training.recipe import TrainRecipe
from pipelines.training.states import Found
from qmop.tiny.base import base_path

GOLDEN = Path(__file__).with_name("golden_losses.json")
RECIPES = (
    "train-tiny",
    "llava-7b-stage1",
    "llava-7b-stage2",
    "llava-13b-stage1",
    "llava-13b-stage2",
    "tokenpacker-7b-stage1",
    "tokenpacker-7b-stage2",
    "visionzip-7b-connector",
)
STEPS = 4


def machine() -> dict[str, str]:
    """What decides the last bits of a sum; numbers of the processor are absent where the system does not tell them."""
    told = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    facts = {name.strip(): value.strip() for name, _, value in told}
    names = ("model name", "cpu family", "model", "stepping", "cache size")
    libraries = {"torch": torch.__version__, "vectors": torch.backends.cpu.get_cpu_capability(), "threads": "1"}
    flags = hashlib.sha256(facts.get("flags", "").encode()).hexdigest()[:12]
    return {name: facts[name] for name in names if name in facts} | {"flags": flags} | libraries


@dataclass(frozen=True)
class LocalSplit:
    """A feed read in this process, for one worker."""

    feed: CorpusFeed

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        """Share by share."""
        blend, stop = self.feed.blend(), self.feed.stop()
        first, last = blend.span_at(self.feed.start), blend.span_at(stop - 1)
        spans: Any = {"id": list(range(last - first + 1))}
        return _read_span(spans, blend=blend, feed=self.feed, first=first, stop=stop, world=1)


class Notes:
    """Keeps what a stage posts."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    @property
    def post(self) -> Any:
        """As an actor's method."""
        return self

    def remote(self, note: dict[str, Any]) -> None:
        """Keep a note."""
        self.seen.append(note)


def small(name: str, folder: Path) -> TrainRecipe:
    """A shipped recipe over the embedded base, in full precision, a few steps long."""
    recipe = parse_recipe("", "", TrainRecipe, ["--config", name, f"--corpus={folder}", f"--output={folder / name}"])
    stages = {one: replace(recipe.stage(one), steps=STEPS, exports=1) for one in recipe.stages}
    place: dict[str, Any] = {"corpus": str(folder / "corpus"), "output": str(folder / name), "base": "tiny"}
    absent = dict.fromkeys(("language", "vision", "llava"))
    sizes: dict[str, Any] = {"tokens": 16, "micro_batch": 4, "global_batch": 8, "precision": "fp32", "max_length": 512}
    manner: dict[str, Any] = {"workers": 1, "cpus_per_worker": 1, "log_every": 1, "save_every": 0, "min_workers": None}
    return replace(recipe, **stages, **place, **absent, **sizes, **manner)


def losses(recipe: TrainRecipe) -> dict[str, list[float]]:
    """Losses of a recipe's stages, one process, no Ray."""
    notes = Notes()
    plans = stage_plans(recipe, load_manifest(recipe.corpus).digest, str(base_path(recipe.base)))
    for plan in plans:
        stage.StageRun(LoopSettings(recipe=recipe, plans=plans, board=notes), plan).run(Found())
    steps = [note for note in notes.seen if note["kind"] == "step"]
    return {name: [note["loss"] for note in steps if note["stage"] == name] for name in recipe.stages}


def main() -> None:
    """Compute all of them; print them, or write them down."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    torch.set_num_threads(1)
    quiet_start()
    import deepspeed  # noqa: PLC0415 - after quiet_start

    stage.own_split = LocalSplit  # type: ignore[assignment]
    preemption.LOOK_S = float("inf")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        deepspeed.init_distributed("gloo")
        prepare(PrepareRecipe(source="rendered", output=str(folder / "corpus"), count=64, seed=5), Progress())
        found = {name: losses(small(name, folder)) for name in RECIPES}
    said = json.dumps({"machine": machine(), "losses": found}, indent=1) + "\n"
    if "--write" in sys.argv:
        GOLDEN.write_text(said)
    else:
        sys.stdout.write(said)


if __name__ == "__main__":
    main()
