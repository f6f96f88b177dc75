"""Memory of a GPU against hand arithmetic, DeepSpeed's words and what torch really keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.training.memory_needs import (
    OFFLOADS,
    Load,
    Machines,
    head_bytes,
    language_activations,
    layer_bytes,
    needs_of,
)
from qmop.language_shape import VICUNA_7B, LanguageShape

BILLION = 10**9
EIGHT = Machines(gpus=8, per_node=8)
SEVEN = Load(trained=7 * BILLION, frozen=BILLION, largest=131_334_144, width=2, activations=0)


def states(zero: int, offload: Any = "none", load: Load = SEVEN, machines: Machines = EIGHT) -> float:
    return needs_of(load, zero, offload, machines).states / BILLION


def test_bf16_with_adam_by_hand() -> None:
    """2 weight + 2 gradient + 4 gradient in full + 4 weight in full + 8 moments = 20 bytes; 16 without the fourth."""
    assert states(0) == 7 * 20
    assert states(1) == 7 * (4 + 16 / 8)
    assert states(2) == 7 * (2 + 18 / 8)
    assert states(3) == pytest.approx(7 * 18 / 8 + 4 * 0.131334144)
    assert states(0) - 7 * 4 == 7 * 16


def test_offloading_leaves_half_precision_weights_and_then_nothing() -> None:
    assert states(2, "optimizer") == 7 * 2
    assert states(3, "optimizer") == pytest.approx(7 * 2 / 8 + 4 * 0.131334144)
    assert states(3, "optimizer and parameters") == pytest.approx(4 * 0.131334144)


def test_single_precision_is_16_bytes_however_it_is_spread() -> None:
    single = Load(trained=7 * BILLION, frozen=0, largest=0, width=4, activations=0)
    assert states(0, load=single) == 7 * 16
    for zero in OFFLOADS:
        alone = needs_of(single, zero, "none", Machines(gpus=1, per_node=1))
        assert alone.states == 7 * BILLION * 16


def test_more_gpus_never_need_more_and_higher_stages_need_less() -> None:
    eight, many = [[states(zero, machines=Machines(gpus=n, per_node=8)) for zero in OFFLOADS] for n in (8, 64)]
    assert eight == sorted(eight, reverse=True)
    assert all(more <= less for more, less in zip(many, eight, strict=True))


def test_frozen_weights_are_sharded_by_zero_3_alone() -> None:
    frozen = [needs_of(SEVEN, zero, "none", EIGHT).frozen for zero in OFFLOADS]
    assert frozen == [2 * BILLION] * 3 + [2 * BILLION // 8]
    assert needs_of(SEVEN, 3, "optimizer and parameters", EIGHT).frozen == 0


def test_machines_share_evenly() -> None:
    assert (Machines(gpus=12, per_node=8).nodes, Machines(gpus=12, per_node=8).used) == (2, 6)


def kept_bytes(layers: int, *, trained: bool, heads: int = 4) -> int:
    """What torch keeps for the backward pass of a little Llama in bf16, weights left out."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).requires_grad_(trained)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            alive.append(tensor)  # so that no other tensor takes its place
        return tensor

    embedded = torch.randn(2, 128, 256, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(inputs_embeds=embedded, use_cache=False)
    return sum(seen.values())


@pytest.mark.parametrize("trained", [True, False])
def test_a_layer_keeps_what_the_formula_says(trained: bool) -> None:
    per_token = (kept_bytes(4, trained=trained) - kept_bytes(2, trained=trained)) / 2 / (2 * 128)
    shape = LanguageShape(layers=1, width=256, inner=704, heads=4, key_heads=4, head_width=64)
    assert per_token == pytest.approx(layer_bytes(shape, 2, trained=trained), rel=0.06)


def test_a_vicuna_layer_by_hand() -> None:
    assert layer_bytes(VICUNA_7B, 2, trained=True) == 24 * 4096 + 8 * 11008
    assert layer_bytes(VICUNA_7B, 2, trained=False) == 16 * 4096 + 6 * 11008
    assert head_bytes(32064, 2) == 14 * 32064


def test_computing_again_keeps_inputs_only() -> None:
    def of(*, recompute: bool) -> int:
        return language_activations(VICUNA_7B, 32064, 2048, 2, trained=True, recompute=recompute)

    assert of(recompute=False) == 2048 * (32 * (24 * 4096 + 8 * 11008) + 14 * 32064)
    assert of(recompute=True) == 2048 * (32 * 2 * 4096 + 14 * 32064)
    assert of(recompute=False) > 9 * of(recompute=True)
