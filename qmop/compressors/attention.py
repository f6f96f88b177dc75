"""What the two attention branches share: projections with a choice of norms and start values."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from qmop.compressors.base import one_of
from qmop.compressors.values import divisor

Norm = Literal["qkv", "qk", "none"]
ValueInit = Literal["normal", "identity"]


class KeyValue(nn.Module):
    """Linear key and value projections and an output projection, all C to C.

    The paper says only that K and V are linear in the features (Sec. 3.3); the rest is open and chosen here.

    Args:
        width: C.
        heads: attention heads.
        norm: where LayerNorm stands: on queries, keys and values (as TokenPacker), on queries and keys, or nowhere.
        value_init: `identity` starts values and output as the features themselves, so that the branch begins as
            a weighted mean of patches and a connector trained on patches fits at once.

    Raises:
        ValueError: if the width does not divide into the heads, or a choice is none of the offered.
    """

    def __init__(self, width: int, heads: int, norm: Norm, value_init: ValueInit) -> None:
        super().__init__()
        divisor("heads", heads, "the width", width)
        one_of("norm", norm, Norm)
        one_of("value_init", value_init, ValueInit)
        self.heads, self.head_width, self.value_init = heads, width // heads, value_init
        self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(3))
        self.query_norm = nn.LayerNorm(width, eps=1e-6) if norm != "none" else nn.Identity()
        self.key_norm = nn.LayerNorm(width, eps=1e-6) if norm != "none" else nn.Identity()
        self.value_norm = nn.LayerNorm(width, eps=1e-6) if norm == "qkv" else nn.Identity()

    def initialise(self) -> None:
        """Truncated normal with deviation 0.02 and zero bias, or the identity for values and output.

        Called by the owner: transformers visits only modules that hold parameters of their own.
        """
        for linear in (self.key, self.value, self.output):
            if self.value_init == "identity" and linear is not self.key:
                init.copy_(linear.weight, torch.eye(linear.out_features, device=linear.weight.device))
            else:
                init.trunc_normal_(linear.weight, std=0.02)
            init.zeros_(linear.bias)

    def keys_values(self, patches_BNC: Tensor, position_NC: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys (with positions, if given) and values, both `(B, N, C)`."""
        placed = patches_BNC if position_NC is None else patches_BNC + position_NC.to(patches_BNC.dtype)
        return self.key_norm(self.key(placed)), self.value_norm(self.value(patches_BNC))
