"""What an evaluation is."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from cluster.bounds import require_above, require_at_least
from cluster.session import RaySettings
from cluster.storage import absolute, is_s3
from pipelines.evaluation.gate import parse_gate
from qmop.vtcbench.items import STANDARD_ITEMS


@dataclass(frozen=True, kw_only=True)
class SuiteRecipe:
    """The rendered suite that is drawn where no other is given.

    Attributes:
        seed: of the suite; training pictures come from streams of another name, so that equal seeds share nothing.
        count: items in all; the comparison of methods takes 10,000.
        items_per_shard: items of one unit of work.
    """

    seed: int = 1
    count: int = STANDARD_ITEMS
    items_per_shard: int = 250

    def __post_init__(self) -> None:
        require_at_least(self, 0, "seed", inside="rendered.")
        require_at_least(self, 1, "count", "items_per_shard", inside="rendered.")


@dataclass(frozen=True, kw_only=True)
class TowerRecipe:
    """One pass of the vision tower for all checkpoints and compressors that share it.

    Attributes:
        shared: whether what the tower makes of a picture is kept for others; answers are the same without.
        folder: local folder of what is kept, the same on every machine; one of the user's own among the machine's
            temporary files when absent.
        cache_mb: what may be kept there, in MiB; what was used longest ago makes room.
    """

    shared: bool = True
    folder: str | None = None
    cache_mb: int = 4096

    def __post_init__(self) -> None:
        if self.folder is not None and is_s3(self.folder):
            raise ValueError(f"tower.folder is {self.folder}, but it must be local: give a path, or leave it out")
        if self.folder is not None:
            object.__setattr__(self, "folder", absolute(self.folder))
        if self.cache_mb < 1:
            raise ValueError(f"tower.cache_mb is {self.cache_mb}: give at least 1, or --tower.shared false")

    @property
    def home(self) -> Path:
        """The folder, on whatever machine this is asked."""
        return Path(self.folder) if self.folder else Path(tempfile.gettempdir(), f"qmop-tower-{os.getuid()}")


@dataclass(frozen=True, kw_only=True)
class WatchRecipe:
    """How new checkpoints are watched for.

    Attributes:
        poll_s: seconds between two looks.
        idle_s: end once looks have found for so many seconds that nothing is left to do anywhere; watch until told to
            end when absent.
        lease_s: seconds of silence after which another scheduler takes over what one has claimed.
    """

    poll_s: float = 5.0
    idle_s: float | None = None
    lease_s: float = 30.0

    def __post_init__(self) -> None:
        require_above(self, 0, "poll_s", "lease_s", inside="watching.")
        require_at_least(self, 0, "idle_s", inside="watching.")


@dataclass(frozen=True, kw_only=True)
class EvaluateRecipe:
    """An evaluation of checkpoints on a suite.

    Attributes:
        checkpoints: what to judge, each `PATH` or `LABEL=PATH`; a path is a checkpoint, a folder of checkpoints (a
            run's output as well), a pattern such as `runs/*/checkpoints/*-tune-*`, or `tiny` for the embedded base.
        output: folder of the results store; what it already holds is not computed again.
        suite: folder of a suite, or of a prepared corpus whose first turns are then asked; drawn when absent.
        rendered: the suite to draw.
        workers: processes that answer.
        threads: of each of them, and CPUs that it holds.
        num_gpus: GPUs of each of them, such as 1 or 0.5; with 0 they answer on CPUs.
        batch: questions answered at once.
        max_new_tokens: longest answer, in tokens.
        fail_below: least accuracies of every checkpoint, such as `micro=0.6,LD=0.4`; the exit code is 3 if one is
            missed.
        tower: one pass of the vision tower for all.
        watch: go on and judge checkpoints as they appear; several such processes share the work.
        watching: how.
        ray: how to reach or start Ray.
    """

    checkpoints: list[str]
    output: str
    suite: str | None = None
    rendered: SuiteRecipe = field(default_factory=SuiteRecipe)
    workers: int = 2
    threads: int = 1
    num_gpus: float = 0.0
    batch: int = 50
    max_new_tokens: int = 8
    fail_below: str | None = None
    tower: TowerRecipe = field(default_factory=TowerRecipe)
    watch: bool = False
    watching: WatchRecipe = field(default_factory=WatchRecipe)
    ray: RaySettings = field(default_factory=RaySettings)

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError("output is empty: name the folder of the results store")
        object.__setattr__(self, "output", absolute(self.output))  # other processes work elsewhere
        if self.suite is not None:
            object.__setattr__(self, "suite", absolute(self.suite))
        if not self.checkpoints:
            raise ValueError("checkpoints is empty: name at least one checkpoint, a folder of them, or tiny")
        require_at_least(self, 1, "workers", "threads", "batch", "max_new_tokens")
        require_at_least(self, 0, "num_gpus")
        parse_gate(self.fail_below)
