"""What is to be seen of a training: from a step's note to named numbers, time left, MFU and one line for people."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pipelines.training.bases import base_config
from pipelines.training.recipe import StageName, TrainRecipe, compressor_options
from qmop.compressors.mixture import BRANCHES
from qmop.configuration_qmop import QMoPConfig
from qmop.cost import cost_of
from qmop.language_shape import LanguageShape

# Dense bf16 TFLOP/s with fp32 accumulation, without sparsity, by the name that torch.cuda.get_device_name() gives.
# Sources: NVIDIA's data sheets of each product (where only the sparse figure is printed, half of it), the Ampere GA102,
# Ada and RTX Blackwell white papers for RTX cards, and AMD's Instinct data sheets (MI250X by die, as torch counts).
_PEAK_TFLOPS = (
    (r"GB200", 2500.0),
    (r"\bB200", 2250.0),
    (r"H[12]00 NVL", 835.0),
    (r"H[18]00 PCIe", 756.0),
    (r"H[128]00", 989.0),
    (r"\bH20\b", 148.0),
    (r"\bA[18]00\b", 312.0),
    (r"\bA10\b", 125.0),
    (r"\bA30\b", 165.0),
    (r"\bA40\b", 149.7),
    (r"\bL4\b", 121.0),
    (r"\bL40\b", 181.0),
    (r"\bL40S\b", 362.0),
    (r"RTX A6000$", 154.8),
    (r"RTX 6000 Ada", 364.2),
    (r"RTX 3090$", 71.0),
    (r"RTX 4090$", 165.2),
    (r"RTX 5090$", 209.5),
    (r"MI250X", 191.5),
    (r"MI3(00|25)X", 1307.4),
)
_WINDOW, _LEAST_S = 50, 2.0
"""The pace is taken over the latest notes, and over no less than this time: notes arrive in bunches."""


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A step as people and trackers see it.

    Attributes:
        step: 1-based, counted over all stages.
        scalars: numbers by name; shares from 0 to 1, times in seconds, entropy in nats.
        line: the same for people.
    """

    step: int
    scalars: dict[str, float]
    line: str


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """Multiply-accumulates of a stage, from the model's own sizes.

    Attributes:
        shape: of the language model.
        head: output layer, for one token.
        frozen: towers, what the method reads, and the question, for one image; forward only.
        projector: compressor and connector, for one image; they always train.
        visual_tokens: of one image.
        language_trains: whether the language model does.
    """

    shape: LanguageShape
    head: int
    frozen: int
    projector: int
    visual_tokens: int
    language_trains: bool

    def flops(self, *, samples: float, tokens: float, images: float) -> float:
        """Floating-point operations of a step (two per multiply-accumulate), without what checkpointing repeats.

        Backward costs twice the forward for what trains. A frozen language model still hands the gradient of its
        inputs down to the projector, which costs as much as its forward (4 N instead of 6 N per token); the towers
        have no backward. Attention is counted in full and as if all samples were of the average length.
        """
        average: Any = tokens / samples  # no whole number, which the arithmetic does not mind
        forward = samples * self.shape.macs(average) + tokens * self.head
        language = forward * (3 if self.language_trains else 2)
        return 2.0 * (language + images * (self.frozen + 3 * self.projector))


def stage_work(recipe: TrainRecipe, stage: StageName) -> StageWork:
    """The work of a recipe's stage, counted without weights.

    Raises:
        FileNotFoundError: if there is no such base.
    """
    fields = base_config(recipe).to_dict()
    options = compressor_options(recipe, stage)
    fields.update(compressor=recipe.compressor, compressor_tokens=recipe.tokens, compressor_options=options)
    config = QMoPConfig.from_dict(fields)
    cost = cost_of(config)
    return StageWork(
        shape=LanguageShape.of(config.text_config),
        head=config.text_config.vocab_size * config.text_config.hidden_size,
        frozen=cost.vision + cost.reading + cost.question,
        projector=cost.projector,
        visual_tokens=cost.visual_tokens,
        language_trains=stage == "tune",
    )


def peak_flops(device: str | None) -> float | None:
    """Dense bf16 FLOP/s of a device by its name; None for a CPU, an unknown device and a part of one."""
    if device is None or "MIG" in device or "Laptop" in device:
        return None
    return next((1e12 * peak for pattern, peak in _PEAK_TFLOPS if re.search(pattern, device)), None)


def global_step(recipe: TrainRecipe, stage: StageName, step: int) -> int:
    """A step of a stage counted over all stages of the recipe, so that their curves follow one another."""
    stages = recipe.stages
    return step + sum(recipe.stage(name).steps for name in stages[: stages.index(stage)])


def scalars_of(note: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a step's note, by names that are usual in the field; what the note lacks is left out."""
    seconds = note.get("seconds")
    found: dict[str, float | None] = {
        "train/loss": note.get("loss"),
        "train/grad_norm": note.get("grad_norm"),
        "train/target_tokens": note.get("targets"),
        "throughput/samples_per_second": note.get("samples_per_s"),
        "throughput/tokens_per_second": _rate(note.get("tokens"), seconds),
        "throughput/visual_tokens_per_second": _rate(note.get("visual_tokens"), seconds),
        "time/step_seconds": seconds,
        "time/data_wait_share": note.get("data_wait"),
        "time/save_wait_seconds": note.get("save_wait_s"),
        "router/temperature": note.get("temperature"),
        "router/noise": note.get("noise"),
        "router/entropy": note.get("router_entropy"),
    }
    found |= {f"train/learning_rate/{group}": rate for group, rate in note.get("rates", {}).items()}
    found |= {f"router/weight/{name}": weight for name, weight in branch_weights(note).items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def branch_weights(note: Mapping[str, Any]) -> dict[str, float]:
    """The router's mean weight of each branch, where there is a router."""
    weights = note.get("branch_weights") or []
    names = BRANCHES if len(weights) == len(BRANCHES) else [str(number) for number in range(len(weights))]
    return dict(zip(names, weights, strict=True))


class Sight:
    """Sees a run's steps go by.

    Args:
        recipe: of the run.
        clock: seconds that pass.
    """

    def __init__(self, recipe: TrainRecipe, clock: Callable[[], float] = time.monotonic) -> None:
        self._recipe, self._clock = recipe, clock
        self._passed: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._work: dict[StageName, StageWork | None] = {}

    def see(self, note: Mapping[str, Any]) -> Sighting:
        """A step's note in numbers and words."""
        step = global_step(self._recipe, note["stage"], note["step"])
        scalars = scalars_of(note)
        mfu = self._mfu(note)
        if mfu is not None:
            scalars["throughput/mfu"] = mfu
        scalars["time/eta_seconds"] = self._eta(note, step)
        return Sighting(step=step, scalars=scalars, line=line(note, scalars))

    def _mfu(self, note: Mapping[str, Any]) -> float | None:
        """Share of the devices' peak that the model's own arithmetic uses."""
        peak, flops = peak_flops(note.get("device")), None
        if peak is not None and self._recipe.precision == "bf16" and note.get("seconds"):
            flops = self._flops(note["stage"], note)
        if peak is None or flops is None:
            return None
        return flops / (note["seconds"] * peak * note.get("world", self._recipe.workers))

    def _flops(self, stage: StageName, note: Mapping[str, Any]) -> float | None:
        """Of the note's step, had it been one of this stage: with the same images and words."""
        here, there = self._work_of(note["stage"]), self._work_of(stage)
        if here is None or there is None or not note.get("tokens"):
            return None
        visual = note.get("visual_tokens", self._recipe.global_batch * here.visual_tokens)  # or a picture per sample
        visual = min(visual, note["tokens"])
        images = visual / max(1, here.visual_tokens)
        tokens = note["tokens"] - visual + images * there.visual_tokens
        return there.flops(samples=self._recipe.global_batch, tokens=tokens, images=images)

    def _work_of(self, stage: StageName) -> StageWork | None:
        if stage not in self._work:
            try:
                self._work[stage] = stage_work(self._recipe, stage)
            except Exception:  # noqa: BLE001 - what cannot be counted is not shown, and must not end a training
                self._work[stage] = None
        return self._work[stage]

    def _eta(self, note: Mapping[str, Any], step: int) -> float:
        """Seconds to the end of the run; a later stage's steps take longer or shorter by the ratio of their work."""
        pace, recipe = self._pace(note, step), self._recipe
        left = pace * (recipe.stage(note["stage"]).steps - note["step"])
        for later in recipe.stages[recipe.stages.index(note["stage"]) + 1 :]:
            here, there = self._flops(note["stage"], note), self._flops(later, note)
            ratio = there / here if here and there else 1.0
            left += pace * ratio * recipe.stage(later).steps
        return left

    def _pace(self, note: Mapping[str, Any], step: int) -> float:
        """Seconds per step by the wall clock, saves and exports included; the step's own until time has passed."""
        first = step - note["step"] + 1
        if self._passed and not first <= self._passed[-1][0] < step:
            self._passed.clear()  # another stage, or a restart
        self._passed.append((step, self._clock()))
        steps, seconds = (self._passed[-1][at] - self._passed[0][at] for at in (0, 1))
        if steps and seconds >= _LEAST_S:
            return seconds / steps
        rate = note.get("samples_per_s")
        return float(note.get("seconds") or (self._recipe.global_batch / rate if rate else 0.0))


def line(note: Mapping[str, Any], scalars: Mapping[str, float]) -> str:
    """A step for people."""
    words = [f"{note['stage']} step {note['step']}/{note['steps']}", f"loss {note['loss']:.3f}"]
    shown = (
        ("throughput/samples_per_second", "{:.0f} samples/s", 1),
        ("throughput/tokens_per_second", "{:,.0f} tokens/s", 1),
        ("throughput/mfu", "MFU {:.0f} %", 100),
        ("time/data_wait_share", "data wait {:.0f} %", 100),
    )
    words += [text.format(scale * scalars[name]) for name, text, scale in shown if name in scalars]
    if weights := branch_weights(note):
        words.append("branches " + "/".join(f"{weight:.2f}" for weight in weights.values()))
    if "time/eta_seconds" in scalars:
        words.append(f"ETA {timedelta(seconds=round(scalars['time/eta_seconds']))}")
    return "  ".join(words)


def _rate(count: float | None, seconds: float | None) -> float | None:
    return count / seconds if count is not None and seconds else None
