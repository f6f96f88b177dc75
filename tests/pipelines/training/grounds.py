"""What a training run needs to stand on: Ray, a base with random weights, and a small corpus."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
from pipelines.training.recipe import StageRecipe, TrainRecipe
from qmop.tiny.assemble import tiny_model, tiny_processor


@contextmanager
def ground_in(folder: Path, *, samples_per_shard: int) -> Iterator[Path]:
    """A folder with `base` and `corpus` (200 rendered samples), inside a Ray session."""
    torch.manual_seed(0)
    tiny_model().save_pretrained(folder / "base")
    tiny_processor().save_pretrained(folder / "base")
    with ray_session(RaySettings(num_cpus=8), Progress(stream=io.StringIO())):
        corpus = {"output": str(folder / "corpus"), "count": 200, "samples_per_shard": samples_per_shard, "seed": 5}
        prepare(PrepareRecipe(source="rendered", **corpus), Progress(stream=io.StringIO()))  # type: ignore[arg-type]
        yield folder


def tuning(ground: Path, name: str, **changes: object) -> TrainRecipe:
    """A tuning stage of nine steps of three slots, with a state after every second."""
    plain = TrainRecipe(
        corpus=str(ground / "corpus"),
        output=str(ground / name),
        base=str(ground / "base"),
        micro_batch=4,
        global_batch=12,
        align=StageRecipe(steps=0),
        tune=StageRecipe(steps=9, projector_rate=1e-3, language_rate=1e-3),
        save_every=2,
        log_every=1,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]
