"""The same tables on a GPU, and a language model of 7B shape in full: prefill, decode and memory."""

from __future__ import annotations

import platform
import statistics

import torch
from transformers import DynamicCache, LlamaModel

from qmop.language_shape import VICUNA_7B
from tests.bench import prefill, projectors
from tests.bench.projectors import progress, seconds

STEPS, ROUNDS, BATCHES = 32, 7, (1, 8)

Device = torch.device


@torch.inference_mode()
def decode(model: LlamaModel, *, batch: int, rounds: int = ROUNDS, steps: int = STEPS) -> str:
    """Time of one decoding step behind each number of visual tokens, and what the cache holds after the prompt."""
    lines = [f"| visual tokens, batch {batch} | decode / at 576 | ms per token | KV cache, MB |", "|---|---|---|---|"]
    visuals = (prefill.WHOLE, *prefill.BUDGETS)
    taken: list[list[float]] = []
    held: list[int] = []
    for number in range(rounds + 1):
        once, held = zip(*(_written(model, batch, visual, steps) for visual in visuals), strict=True)
        if number:  # the first round warms up
            taken.append(once)
        progress(f"decode, batch {batch}: round {number} of {rounds}")
    for place, visual in enumerate(visuals):
        ratios = [one[place] / one[0] for one in taken]
        middle = statistics.median(one[place] for one in taken) * 1000
        lines.append(f"| {visual} | {projectors.spread(ratios)} | {middle:.2f} | {held[place] / 1e6:.1f} |")
    return "\n".join(lines) + "\n"


def _written(model: LlamaModel, batch: int, visual: int, steps: int) -> tuple[float, int]:
    """Seconds per step, and bytes of the cache before the first."""
    cache, states = DynamicCache(config=model.config), prefill.prompts(model, batch, visual)
    model(inputs_embeds=states, past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

    def write() -> None:
        for _ in range(steps):
            model(inputs_embeds=states[:, :1], past_key_values=cache, use_cache=True)

    return seconds(write, states.device) / steps, held


def machine() -> str:
    """What the figures were measured on."""
    about = torch.cuda.get_device_properties(0)
    return (
        f"{about.name}, {about.total_memory / 2**30:.0f} GiB, compute capability {about.major}.{about.minor}; "
        f"CUDA {torch.version.cuda}, torch {torch.__version__}, Python {platform.python_version()}\n"
    )


@torch.inference_mode()
def run() -> str:
    """All tables on the first CUDA device.

    Raises:
        SystemExit: if there is none.
    """
    if not torch.cuda.is_available():
        raise SystemExit("gpu-proof needs a CUDA GPU, but torch sees none here: run it on a machine that has one")
    device, dtype = Device("cuda"), torch.bfloat16
    torch.manual_seed(0)
    towers, rounds = projectors.Towers(device, dtype), dict.fromkeys(projectors.BATCHES, 20)
    parts = [machine(), projectors.checks(towers, rounds), projectors.table(towers, rounds)]
    del towers
    progress("building 32 layers of 7B width")
    model = prefill.language_model(VICUNA_7B, device, dtype)
    for batch in BATCHES:
        parts.append(prefill.table(model, VICUNA_7B, batch=batch, rounds=ROUNDS))
        parts.append(decode(model, batch=batch))
    return "\n".join(parts)
