"""Multiply-accumulates of whatever runs.

Counted are products of matrices, convolutions, attention (in full, although half of it is masked in a causal model)
and every product of two tensors element by element, which is how attention over small windows is computed. Not
counted, as in the papers: sums, norms, activations, softmaxes, sorting, interpolation and products with a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def macs_of(call: Callable[[], object]) -> int:
    """Run something and count its MACs, by the rules at the top of this module."""
    # Fused kernels hide their products from the counter; the plain ones compute the same in the open.
    with _no_fused_attention(), _Counter() as counter:
        call()
    return counter.macs


@contextmanager
def _no_fused_attention() -> Iterator[None]:
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _Counter(TorchDispatchMode):
    """Adds up the products of every operation; torch's own counter fails on modules that are called with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        result = func(*args, **kwargs)
        kind = func.overloadpacket
        if kind in flop_registry:
            self.macs += flop_registry[kind](*args, **kwargs, out_val=result) // 2
        elif kind in (torch.ops.aten.mul, torch.ops.aten.mul_):
            self.macs += _elementwise(args[0], args[1], result)
        elif kind == torch.ops.aten._cdist_forward:  # noqa: SLF001 - an operation's name
            self.macs += result.numel() * args[0].shape[-1]
        return result


def _elementwise(left: Any, right: Any, result: Tensor) -> int:
    """One per number in the result, unless one side is a single number."""
    smaller = min(side.numel() if isinstance(side, Tensor) else 1 for side in (left, right))
    return 0 if smaller == 1 else result.numel()
