"""What a process holds of a model in training, in pieces that do not depend on ZeRO stage or number of processes.

A *fragment* is a stretch of one trained parameter, flattened: its fp32 weights and Adam's two moments. The fragments of
all processes together cover every trained parameter, once or (where ZeRO shares nothing) in every process alike. Saved
pieces can so be put back under any other ZeRO stage and number of processes, without a conversion and without the
pickles of DeepSpeed's own checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

WEIGHTS, MOMENTS = "fp32", ("exp_avg", "exp_avg_sq")
KINDS = (WEIGHTS, *MOMENTS)


@dataclass(frozen=True)
class Fragment:
    """One stretch of one parameter.

    Attributes:
        name: of the parameter.
        start: first element of the stretch.
        count: elements.
        whole: elements of the parameter.
        view: from a kind to the tensor that the engine works with, `(count,)` fp32; writing to it changes the engine.
    """

    name: str
    start: int
    count: int
    whole: int
    view: Callable[[str], Tensor]


def held(engine: Any) -> Iterator[Fragment]:
    """The fragments of this process, in the order of the model's parameters."""
    _give_moments(engine)
    inner = engine.optimizer.optimizer if _wrapped(engine) else engine.optimizer
    flats = _flats(engine)
    for name, parameter in _trained(engine.module):
        if hasattr(parameter, "ds_id"):
            yield from _of_stage_3(name, parameter)
        elif hasattr(parameter, "_hp_mapping"):
            yield from _of_stage_1_and_2(name, parameter, flats, inner.state)
        else:
            count, master = parameter.numel(), _master(engine, parameter)
            yield Fragment(name, 0, count, count, partial(_whole, master, inner.state[master]))


def adam_steps(engine: Any) -> int:
    """How many steps the optimiser has taken."""
    _give_moments(engine)
    return max(int(state["step"]) for state in _states(engine))


def put_back(engine: Any, adam_step: int, fill: Callable[[Fragment], dict[str, Tensor]]) -> None:
    """Set every fragment of this process, then the model's own weights; a collective call.

    Args:
        engine: just made, with the same parameters.
        adam_step: how many steps the optimiser had taken.
        fill: from a fragment to its tensors by kind, `(count,)`.
    """
    if three := hasattr(next(engine.module.parameters()), "ds_id"):
        engine.optimizer.checkpoint_event_prologue()
    for fragment in held(engine):
        for kind, values in fill(fragment).items():
            fragment.view(kind).copy_(values)
    for state in _states(engine):
        state["step"] = torch.full_like(torch.as_tensor(state["step"]), float(adam_step))
    if three:
        for fragment, (_, parameter) in zip(held(engine), _with_elements(engine.module), strict=True):
            parameter.ds_tensor.view(-1)[: fragment.count].copy_(fragment.view(WEIGHTS))
        engine.optimizer.checkpoint_event_epilogue()
    elif hasattr(engine.optimizer, "update_lp_params"):
        engine.optimizer.update_lp_params()
    else:
        for _, parameter in _trained(engine.module):
            parameter.data.copy_(_master(engine, parameter).data)


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def _wrapped(engine: Any) -> bool:
    """Whether DeepSpeed has wrapped the optimiser; it leaves it alone for ZeRO-0 in fp32."""
    return not isinstance(engine.optimizer, torch.optim.Optimizer)


def _flats(engine: Any) -> list[Tensor]:
    """The tensors that the inner optimiser steps."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return list(optimizer.fp32_partitioned_groups_flat)
    inner = optimizer.optimizer if _wrapped(engine) else optimizer
    return [tensor for group in inner.param_groups for tensor in group["params"]]


def _states(engine: Any) -> Iterator[dict[str, Any]]:
    inner = engine.optimizer.optimizer if _wrapped(engine) else engine.optimizer
    return (inner.state[tensor] for tensor in _flats(engine))


def _give_moments(engine: Any) -> None:
    """Make Adam's moments where no step has been taken yet, as the first step would."""
    for tensor, state in zip(_flats(engine), _states(engine), strict=True):
        if not state:
            state["step"] = torch.zeros(())
            state |= {kind: torch.zeros_like(tensor) for kind in MOMENTS}


def _master(engine: Any, parameter: nn.Parameter) -> Tensor:
    """The fp32 weights of a parameter without ZeRO: itself, or DeepSpeed's copy where it computes in bf16."""
    optimizer = engine.optimizer
    if not _wrapped(engine):
        return parameter
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return next(copy for ours, copies in pairs for one, copy in zip(ours, copies, strict=True) if one is parameter)


def _whole(master: Tensor, state: dict[str, Any], kind: str) -> Tensor:
    values: Tensor = master.data if kind == WEIGHTS else state[kind]
    return values.view(-1)


def _of_stage_1_and_2(
    name: str, parameter: Any, flats: list[Tensor], states: dict[Tensor, dict[str, Any]]
) -> Iterator[Fragment]:
    """A parameter's stretch in the flat partition of this process, if any of it lies there."""
    mapping = parameter._hp_mapping  # noqa: SLF001 - DeepSpeed's readers of local stretches exist for ZeRO-3 only
    if mapping is None:
        return
    inside, flat = mapping.hp_fragment_address, flats[mapping.param_group_index]

    def view(kind: str) -> Tensor:
        values: Tensor = flat.data if kind == WEIGHTS else states[flat][kind]
        return values.view(-1)[inside.start : inside.start + inside.numel]

    yield Fragment(name, mapping.lp_fragment_address.start, inside.numel, parameter.numel(), view)


def _of_stage_3(name: str, parameter: Any) -> Iterator[Fragment]:
    """Every process holds an equal part of every parameter; the last ones may hold padding."""
    part, whole = parameter.ds_tensor.numel(), parameter.ds_numel
    start = part * torch.distributed.get_rank()
    count = min(part, whole - start)
    if count <= 0:
        return
    optimizer = parameter._z3_optimizer  # noqa: SLF001 - DeepSpeed hangs it there for its own readers

    def view(kind: str) -> Tensor:
        values, _ = optimizer._get_fp32_opt_state_partition(  # noqa: SLF001 - its public reader may hand out a copy
            parameter, release_swap_buffers=True, optim_state_key=None if kind == WEIGHTS else kind
        )
        return values.data.view(-1)[:count]

    yield Fragment(name, start, count, whole, view)


def _with_elements(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """ZeRO-3's trained parameters of which this process holds more than padding."""
    rank = torch.distributed.get_rank()
    trained: Iterator[tuple[str, Any]] = _trained(module)
    return ((name, p) for name, p in trained if p.ds_tensor.numel() * rank < p.ds_numel)
