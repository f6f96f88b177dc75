"""Where the time of an answer goes: vision tower, text tower, projector, prefill, decode.

What is timed is stock `generate`, watched from outside by hooks, so it is what a user waits for, whether the model is
one of ours, a stock LLaVA or a stock LLaVA with a compressor attached.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qmop.attachment import compression_of
from qmop.peak_memory import peak_bytes

STAGES = ("encoder", "text tower", "projector", "prefill", "other", "first token", "decode, per token")
"""`text tower` includes the language model's own pass over the question, for methods that read that. `other` is what
stands between the stages before the first token: reading features, fitting prompts, the library itself."""

WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of one stage over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Timing:
        """Median and quartiles."""
        if len(values) == 1:
            return cls(median=values[0], low=values[0], high=values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Timings of one batch.

    Attributes:
        stages: by the names of `STAGES`; absent where the model has no such part or it did not run.
        device: what it ran on.
        images: pictures in the batch.
        rows: prompts in the batch.
        prompt_tokens: longest prompt that the language model read, visual tokens included.
        rounds: how often it was timed, after the warm-up.
        weights_bytes: what the model itself holds.
        peak_bytes: most memory beyond the weights, see `peak_bytes`.
    """

    stages: dict[str, Timing]
    device: str
    images: int
    rows: int
    prompt_tokens: int
    rounds: int
    weights_bytes: int
    peak_bytes: int

    def markdown(self) -> str:
        """A table of one row per stage: median and quartiles."""
        batch = f"{self.rows} prompts of {self.prompt_tokens} tokens, {self.images} images"
        lines = [
            f"{batch}, {self.device}, {self.rounds} rounds",
            "",
            "| stage | median, ms | quartiles, ms |",
            "|---|---|---|",
        ]
        lines += [f"| {name} | {t.median:.2f} | {t.low:.2f} to {t.high:.2f} |" for name, t in self.stages.items()]
        lines.append(f"\nMemory: weights {_mib(self.weights_bytes)}, peak beyond them {_mib(self.peak_bytes)}.")
        return "\n".join(lines) + "\n"


def profile(model: Any, batch: Mapping[str, Any], *, rounds: int = 5, decode_tokens: int = 8) -> Profile:
    """Time the stages of answering a batch.

    Args:
        model: ours or a stock LLaVA, on the CPU or on CUDA; it is timed as it is, in its dtype.
        batch: what the processor returned for at least one picture, on the model's device.
        rounds: how often to time, after a warm-up.
        decode_tokens: tokens to write after the first one.

    Raises:
        ValueError: if there is no picture, nothing to time, or the device has no clock here.
    """
    if rounds < 1 or decode_tokens < 1:
        raise ValueError(f"rounds is {rounds} and decode_tokens {decode_tokens}: choose at least 1 of each")
    if batch.get("pixel_values") is None:
        raise ValueError("batch has no pixel_values: pass what the processor returns for a prompt with a picture")
    watch = _Watch(model, decode_tokens)
    for _ in range(WARM_UP):
        watch.round(batch)
    timed = [watch.round(batch) for _ in range(rounds)]
    return Profile(
        stages={name: Timing.of([one[name] for one in timed]) for name in STAGES if name in timed[0]},
        device=device_name(model.device),
        images=len(batch["pixel_values"]),
        rows=len(batch["input_ids"]),
        prompt_tokens=watch.prompt_tokens,
        rounds=rounds,
        weights_bytes=_weights(model),
        peak_bytes=peak_bytes(lambda: watch.answer(batch), model.device),
    )


def device_name(device: torch.device) -> str:
    """A device in words, with the number of threads for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


class _Clock:
    """Marks points in time; on CUDA in the stream of work, so that nothing is held up."""

    def __init__(self, device: torch.device) -> None:
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"the model is on {device}, but only cpu and cuda can be timed: move it to one of these")
        self.device = device

    def mark(self) -> Any:
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def milliseconds(self, begin: Any, end: Any) -> float:
        return (end - begin) * 1000 if self.device.type == "cpu" else begin.elapsed_time(end)


@dataclass
class _Watch:
    """Runs `generate` with hooks on the parts of the model, and sorts what they saw into stages."""

    model: Any
    decode_tokens: int
    seen: list[tuple[str, Any, Any]] = field(default_factory=list)
    prompt_tokens: int = 0

    def __post_init__(self) -> None:
        self.clock = _Clock(self.model.device)

    @torch.no_grad()
    def answer(self, batch: Mapping[str, Any]) -> None:
        """Greedy, of fixed length."""
        length = self.decode_tokens + 1
        self.model.generate(**batch, max_new_tokens=length, min_new_tokens=length, do_sample=False, num_beams=1)

    def round(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """Milliseconds of each stage, once."""
        self.seen.clear()
        with self._hooks():
            self.clock.wait()
            begin = self.clock.mark()
            self.answer(batch)
            self.clock.wait()
        return self._sorted(begin)

    def _sorted(self, begin: Any) -> dict[str, float]:
        between = self.clock.milliseconds
        names = [name for name, _, _ in self.seen]
        first_head = names.index("head")
        prompt = max(place for place in range(first_head) if names[place] == "prefill")
        stages: dict[str, float] = {}
        for place, (name, start, end) in enumerate(self.seen[: first_head + 1]):
            stage = {"head": "prefill", "prefill": "prefill" if place == prompt else "text tower"}.get(name, name)
            stages[stage] = stages.get(stage, 0.0) + between(start, end)
        whole = between(begin, self.seen[first_head][2])
        stages["other"] = whole - sum(stages.values())
        stages["first token"] = whole
        stages["decode, per token"] = between(self.seen[first_head][2], self.seen[-1][2]) / (names.count("head") - 1)
        return stages

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        inner, attached = self.model.model, compression_of(self.model)
        beside = None if attached is None else attached._images  # noqa: SLF001 - it holds them beside the model
        parts = {
            "encoder": inner.vision_tower,
            "text tower": getattr(inner if beside is None else beside, "query_encoder", None),
            "projector": inner.multi_modal_projector if beside is None else beside.projector,
            "prefill": inner.language_model,
            "head": self.model.lm_head,
        }
        with ExitStack() as stack:
            for name, part in parts.items():
                if part is not None:
                    self._hook(stack, name, part)
            yield

    def _hook(self, stack: ExitStack, name: str, part: nn.Module) -> None:
        begun: list[Any] = []

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name == "prefill" and not any(one[0] == "head" for one in self.seen):
                given = [*args, kwargs.get("inputs_embeds"), kwargs.get("input_ids")]
                self.prompt_tokens = next(value.shape[1] for value in given if value is not None)
            begun.append(self.clock.mark())

        def leave(*_: Any) -> None:
            self.seen.append((name, begun.pop(), self.clock.mark()))

        stack.callback(part.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(part.register_forward_hook(leave).remove)


def _weights(model: nn.Module) -> int:
    """Bytes of parameters and buffers, each storage once."""
    held = [*model.parameters(), *model.buffers()]
    return sum({value.data_ptr(): value.nbytes for value in held}.values())


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
