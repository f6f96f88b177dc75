"""Prefill of a language model of 7B width over the visual tokens that methods leave: measured against ideal.

A prompt of LLaVA-1.5 has 35 tokens before the picture and about 25 behind it, with a short question; those 60 are
there at every budget. The ideal ratio is that of the MACs of the whole prompt, text included.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import LlamaModel

from qmop.cost import llava_config
from qmop.language_shape import VICUNA_7B, LanguageShape
from tests.bench.projectors import against, paired, progress, seconds, where

WHOLE, BUDGETS, TEXT = 576, (144, 64), 60
LIMIT = 1.15

Device = torch.device


def language_model(shape: LanguageShape, device: Device, dtype: torch.dtype) -> LlamaModel:
    """Random weights, made in place, one parameter at a time, so that there is never a second copy."""
    config = llava_config().text_config
    config.num_hidden_layers, config.vocab_size = shape.layers, 8
    config.hidden_size, config.intermediate_size = shape.width, shape.inner
    config.num_attention_heads, config.num_key_value_heads = shape.heads, shape.key_heads
    config.head_dim, config.pad_token_id = shape.head_width, 0
    config.dtype = dtype
    with torch.device("meta"):
        model = LlamaModel(config)
    model.to(dtype).to_empty(device=device)
    model.rotary_emb = type(model.rotary_emb)(config=config).to(device)
    for name, parameter in model.named_parameters():
        nn.init.ones_(parameter) if "norm" in name else nn.init.normal_(parameter, std=0.02)
    return model.eval()


def prompts(model: LlamaModel, batch: int, visual: int) -> Tensor:
    """Embedded prompts of one picture each."""
    weight = next(model.parameters())
    return torch.randn(batch, visual + TEXT, model.config.hidden_size, device=weight.device, dtype=weight.dtype)


@torch.inference_mode()
def table(model: LlamaModel, shape: LanguageShape, *, batch: int, rounds: int) -> str:
    """Prefill at each budget as a ratio to all visual tokens, timed in the same round."""
    device = next(model.parameters()).device
    given = {visual: prompts(model, batch, visual) for visual in (WHOLE, *BUDGETS)}
    took: dict[int, list[float]] = {visual: [] for visual in given}
    for number in range(rounds + 1):
        for visual, states in given.items():
            once = seconds(partial(model, inputs_embeds=states, use_cache=True), device)
            if number:  # the first round warms up
                took[visual].append(once)
        progress(f"prefill, batch {batch}: round {number} of {rounds}")
    size = f"{shape.layers} layers of width {shape.width}, batch {batch}, {TEXT} text tokens"
    middle = statistics.median(took[WHOLE]) * 1000
    lines = [
        f"{size}, {where(device, next(model.parameters()).dtype)}; {WHOLE} visual tokens took {middle:.0f} ms",
        "",
        "| visual tokens | time / time at 576 | ideal (MACs) | measured / ideal | limit |",
        "|---|---|---|---|---|",
    ]
    for visual in BUDGETS:
        ideal = shape.macs(visual + TEXT) / shape.macs(WHOLE + TEXT)
        over, best = paired(took[visual], took[WHOLE]) / ideal, min(took[visual]) / min(took[WHOLE]) / ideal
        met = "met" if over <= LIMIT else "missed"
        times = against(took[visual], took[WHOLE])
        lines.append(f"| {visual} | {times} | {ideal:.3f} | {over:.2f}, best {best:.2f} | {LIMIT}, {met} |")
    return "\n".join(lines) + "\n"


def run() -> str:
    """Four layers of 7B width on the CPU, in the precision that checkpoints of this size are kept in."""
    shape = replace(VICUNA_7B, layers=4)
    progress("prefill: building four layers of 7B width")
    return table(language_model(shape, Device("cpu"), torch.bfloat16), shape, batch=1, rounds=5)
