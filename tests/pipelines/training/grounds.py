"""What a training run needs to stand on: Ray, a base with random weights, and a small corpus."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
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
