"""What an evaluation is."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.session import RaySettings
from cluster.storage import absolute
from qmop.vtcbench.items import CI_ITEMS


@dataclass(frozen=True, kw_only=True)
class SuiteRecipe:
    """The rendered suite that is drawn where no other is given.

    Attributes:
        seed: of the suite; training uses other seeds.
        count: items in all: 1,500 as in continuous integration; the comparison of methods takes 10,000.
        items_per_shard: items of one unit of work.
    """

    seed: int = 1
    count: int = CI_ITEMS
    items_per_shard: int = 250


@dataclass(frozen=True, kw_only=True)
class EvaluateRecipe:
    """An evaluation of checkpoints on a suite.

    Attributes:
        checkpoints: what to judge, each `PATH` or `LABEL=PATH`; a path is a checkpoint, a folder of checkpoints (a
            run's output as well) or `tiny` for the embedded base.
        output: folder of the results store; what it already holds is not computed again.
        suite: folder of a suite, or of a prepared corpus whose first turns are then asked; drawn when absent.
        rendered: the suite to draw.
        workers: processes that answer.
        batch: questions answered at once.
        max_new_tokens: longest answer, in tokens.
        ray: how to reach or start Ray.
    """

    checkpoints: list[str]
    output: str
    suite: str | None = None
    rendered: SuiteRecipe = field(default_factory=SuiteRecipe)
    workers: int = 2
    batch: int = 50
    max_new_tokens: int = 8
    ray: RaySettings = field(default_factory=RaySettings)

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", absolute(self.output))  # other processes work elsewhere
        if self.suite is not None:
            object.__setattr__(self, "suite", absolute(self.suite))
        if not self.checkpoints:
            raise ValueError("checkpoints is empty: name at least one checkpoint, a folder of them, or tiny")
        for name in ("workers", "batch", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be at least 1")
