"""What is judged while a training goes on, by what, on which resources, and which exports stay."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cluster.bounds import require_above, require_at_least
from cluster.storage import absolute
from pipelines.evaluation.recipe import SuiteRecipe

Metric = Literal["micro", "macro", "GU", "SC", "RC", "SE", "LD"]


@dataclass(frozen=True, kw_only=True)
class ValidationRecipe:
    """Exports judged on a rendered suite of VTCBench, beside the training.

    Attributes:
        every: judge every N-th export of a stage, N being this value, and the last; with 0 none is judged.
        suite: the suite to draw. Who picks a checkpoint by a suite reports on one of another seed, so this seed is not
            that of an evaluation.
        metric: what the best is the best in: micro or macro accuracy, or that of one dimension.
        time_limit_s: seconds that one export may take, waiting for its resources included.
        num_cpus: CPUs of the process that judges, beside those of the training.
        num_gpus: its GPUs, beside those of the training; with 0 it judges on CPUs.
        batch: questions answered at once.
        max_new_tokens: longest answer, in tokens.
        results: folder of the results store; `validation` in the run's output when absent.
        keep_exports: how many of a stage's latest exports stay, and its best and those still to be judged beside
            them; with 0 all stay.
    """

    every: int = 0
    suite: SuiteRecipe = field(default_factory=lambda: SuiteRecipe(seed=1001, count=500, items_per_shard=125))
    metric: Metric = "micro"
    time_limit_s: float = 1800.0
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    batch: int = 50
    max_new_tokens: int = 8
    results: str | None = None
    keep_exports: int = 0

    def __post_init__(self) -> None:
        if self.results is not None:
            object.__setattr__(self, "results", absolute(self.results))  # other processes work elsewhere
        require_at_least(self, 0, "every", "num_gpus", "keep_exports", inside="validation.")
        require_at_least(self, 1, "batch", "max_new_tokens", inside="validation.")
        require_above(self, 0, "time_limit_s", "num_cpus", inside="validation.")

    def judges(self, place: int, exports: int) -> bool:
        """Whether the export at a place, from 1, of a stage with so many is to be judged."""
        return bool(self.every) and (place % self.every == 0 or place == exports)
