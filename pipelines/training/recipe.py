"""What a training run is: one frozen object, read from YAML, written beside everything that it makes."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from cluster.bounds import require_above, require_at_least, require_within
from cluster.session import RaySettings
from cluster.storage import absolute, join
from pipelines.training.lora import LoraRecipe
from pipelines.training.parts import Parts, named_parts
from pipelines.training.tracking import require_known
from pipelines.training.validation_recipe import ValidationRecipe
from qmop.annealing import RouterSchedule

StageName = Literal["align", "tune"]
_PLACES = ("corpus", "output", "ray")
_MANNERS = (
    "allow_changes",
    "log_every",
    "trackers",
    "save_every",
    "keep_states",
    "max_failures",
    "watchdog_s",
    "validation",
)
_MACHINES = ("workers", "min_workers", "cpus_per_worker", "zero", "zero_options", "gradient_checkpointing")
_REHEARSAL = ("dry_run", "gpu_gib", "gpus_per_node")
_LARGEST_SEED = 2**32 - 1
"""Generators of torch take 64 bits, and seeds are multiplied before they get there."""
_NOT_SHAPING = _PLACES + _MANNERS + _MACHINES + _REHEARSAL


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """One stage of training; the run's recipe holds its numbers to their bounds, since it knows the stage's name.

    Attributes:
        steps: optimiser steps; 0 leaves the stage out.
        projector_rate: peak learning rate of the projector; 0 leaves it as it is.
        language_rate: peak learning rate of the language model, which trains in the tuning stage only; 0 leaves it as
            it is.
        warmup: share of the steps in which the rates rise.
        exports: how many checkpoints to export, evenly spaced, the last at the end.
    """

    steps: int = 100
    projector_rate: float = 1e-3
    language_rate: float = 0.0
    warmup: float = 0.03
    exports: int = 1

    def require_bounds(self, inside: str) -> None:
        """Refuse numbers that make no stage.

        Args:
            inside: what stands before the fields' names when they are given, such as ``tune.``.

        Raises:
            ValueError: naming the field, its value and the bounds.
        """
        require_at_least(self, 0, "steps", inside=inside)
        require_at_least(self, 1, "exports", inside=inside)
        require_within(self, 0, 1, "projector_rate", "language_rate", inside=inside)
        require_within(self, 0, 1, "warmup", inside=inside, below=True)

    def export_steps(self) -> tuple[int, ...]:
        """After which steps a checkpoint is exported."""
        return tuple(sorted({-(-self.steps * part // self.exports) for part in range(1, self.exports + 1)}))


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """A training run.

    Attributes:
        corpus: folder of a prepared corpus (it holds manifest.json).
        output: folder of the run; exports go to its `checkpoints`.
        base: checkpoint to start from, or `tiny` for the embedded base.
        language: a language model to make the base of, with `vision`: folder, s3:// prefix or `owner/name[@revision]`.
        vision: a CLIP or SigLIP with both towers; beside `llava` the one that its tower was taken from.
        llava: a stock LLaVA to make the base of.
        compressor: a name of `qmop.list_compressors()`.
        tokens: visual tokens per image.
        options: the compressor's own fields.
        align: stage 1, projector only.
        tune: stage 2, projector and language model.
        lora: adapters that train in stage 2 instead of the whole language model.
        router: schedules of router temperature and noise.
        workers: training processes; a run may go on with another number.
        min_workers: fewest processes that the run goes on with while machines are missing; absent: it waits for all.
        cpus_per_worker: CPUs that Ray reserves for each.
        zero: DeepSpeed ZeRO stage.
        precision: of compute and weights.
        micro_batch: samples that one process puts through the model at once.
        global_batch: samples per optimiser step, over all processes.
        max_length: tokens per sample, image included; longer answers are cut.
        clip: largest norm of the gradient; with 0 it is left as it is.
        weight_decay: of AdamW.
        beta2: of AdamW; the published recipes have 0.999, short runs do better with less.
        seed: of data order, turn choice, noise and start values.
        log_every: steps between two lines of progress.
        trackers: where the numbers go beside metrics.jsonl: tensorboard, mlflow, wandb.
        save_every: steps between two resumable states inside a stage; with 0 a run resumes at whole stages only.
        keep_states: how many of the latest resumable states stay.
        max_failures: worker failures that a run survives; with -1 any number.
        validation: which exports are judged while training goes on, by what, and which stay.
        allow_changes: fields, or `corpus` and `base` for their content, that may differ from the run that the output
            folder holds.
        watchdog_s: seconds that processes wait for each other before the run counts as stuck and is started again;
            longer than an export takes. The parts of a state are waited for half as long.
        on_nan: what happens when a loss is not finite: stop with the keys of the samples, or skip them and go on.
        gradient_checkpointing: compute the language model's activations again instead of keeping them.
        zero_options: further entries of DeepSpeed's `zero_optimization`, such as offload_optimizer.
        dry_run: print parameters, memory, steps and tokens, refuse what cannot fit, and train nothing.
        gpu_gib: memory of one GPU that a dry run measures against; this machine's own when absent.
        gpus_per_node: GPUs of one machine, for a dry run.
        ray: how to reach or start Ray.
    """

    corpus: str
    output: str
    base: str = "tiny"
    language: str | None = None
    vision: str | None = None
    llava: str | None = None
    compressor: str = "qmop"
    tokens: int = 16
    options: dict[str, Any] = field(default_factory=dict)
    align: StageRecipe = field(default_factory=lambda: StageRecipe(steps=150))
    tune: StageRecipe = field(
        default_factory=lambda: StageRecipe(steps=240, projector_rate=5e-4, language_rate=5e-4, exports=2)
    )
    lora: LoraRecipe = field(default_factory=LoraRecipe)
    router: RouterSchedule = field(default_factory=RouterSchedule)
    workers: int = 2
    min_workers: int | None = None
    cpus_per_worker: float = 1.0
    zero: Literal[0, 1, 2, 3] = 2
    precision: Literal["fp32", "bf16"] = "fp32"
    micro_batch: int = 16
    global_batch: int = 32
    max_length: int = 512
    clip: float = 1.0
    weight_decay: float = 0.0
    beta2: float = 0.98
    seed: int = 0
    log_every: int = 10
    trackers: tuple[str, ...] = ("tensorboard",)
    save_every: int = 0
    keep_states: int = 2
    max_failures: int = 1
    validation: ValidationRecipe = field(default_factory=ValidationRecipe)
    allow_changes: tuple[str, ...] = ()
    watchdog_s: int = 600
    on_nan: Literal["stop", "skip"] = "stop"
    gradient_checkpointing: bool = False
    zero_options: dict[str, Any] = field(default_factory=dict)
    dry_run: bool = False
    gpu_gib: float | None = None
    gpus_per_node: int = 8
    ray: RaySettings = field(default_factory=RaySettings)

    def __post_init__(self) -> None:
        for name in ("corpus", "output"):  # other processes have other working directories
            object.__setattr__(self, name, absolute(getattr(self, name)))
        named_parts(self.base, self.language, self.vision, self.llava)
        self.align.require_bounds("align.")
        self.tune.require_bounds("tune.")
        require_at_least(self, 1, "gpus_per_node", "workers", "micro_batch", "log_every", "tokens", "keep_states")
        require_at_least(self, 1, "watchdog_s", "max_length")
        require_at_least(self, 0, "save_every")
        require_at_least(self, -1, "max_failures")
        require_above(self, 0, "cpus_per_worker", "gpu_gib")
        require_within(self, 0, math.inf, "clip", "weight_decay", below=True)
        require_within(self, 0, 1, "beta2", below=True)
        require_within(self, 0, _LARGEST_SEED, "seed")
        require_known(self.trackers)
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ValueError(f"min_workers is {self.min_workers}, but it lies between 1 and workers ({self.workers})")
        if self.global_batch < self.micro_batch or self.global_batch % self.micro_batch:
            raise ValueError(
                f"global_batch is {self.global_batch}, but it consists of whole micro-batches of {self.micro_batch}: "
                f"choose a multiple of {self.micro_batch}"
            )
        if self.align.steps + self.tune.steps == 0:
            raise ValueError("align.steps and tune.steps are both 0: give at least one stage a step")

    @property
    def parts(self) -> Parts | None:
        """What the base is made of; None where `base` is a checkpoint."""
        return named_parts(self.base, self.language, self.vision, self.llava)

    @property
    def slots(self) -> int:
        """Micro-batches of one optimiser step, over all processes; the last processes may get one less than others."""
        return self.global_batch // self.micro_batch

    def stage(self, name: StageName) -> StageRecipe:
        """A stage by name."""
        return self.align if name == "align" else self.tune

    @property
    def stages(self) -> tuple[StageName, ...]:
        """The stages that have steps, in order."""
        names: tuple[StageName, ...] = ("align", "tune")
        return tuple(name for name in names if self.stage(name).steps)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that shapes the result but the corpus, which has a digest of its own."""
        return hashlib.sha256(json.dumps(shaping(self), sort_keys=True).encode()).hexdigest()


SHAPING = tuple(field.name for field in fields(TrainRecipe) if field.name not in _NOT_SHAPING)
"""Fields that shape the result of a run."""


def shaping(recipe: TrainRecipe) -> dict[str, Any]:
    """The fields that shape the result, as JSON has them."""
    mine = asdict(recipe)
    return {name: mine[name] for name in SHAPING}


def states_folder(recipe: TrainRecipe) -> str:
    """Where a run keeps its resumable states."""
    return join(recipe.output, "states")


def ledger_folder(recipe: TrainRecipe, stage: StageName) -> str:
    """Where a stage keeps the account of its samples."""
    return join(recipe.output, "ledger", stage)


def compressor_options(recipe: TrainRecipe, stage: StageName) -> dict[str, Any]:
    """The compressor's fields in a stage: QMoP learns its stage and the temperature that it will rest at."""
    from qmop.compressors.registry import option_names  # noqa: PLC0415 - torch, which reading a recipe does without

    if "router" not in option_names(recipe.compressor):
        return dict(recipe.options)
    router = {"temperature": recipe.router.temperature_end, **recipe.options.get("router", {})}
    return {**recipe.options, "stage": 1 if stage == "align" else 2, "router": router}
