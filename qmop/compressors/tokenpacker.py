"""TokenPacker: a coarse map of the picture asks, and each of its points hears the fine patches under it."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from qmop.compressors.base import Compressor, Declaration, budget, stride_of
from qmop.compressors.projector import Connector
from qmop.compressors.registry import register
from qmop.compressors.values import divisor, whole
from qmop.features import CompressedTokens, Query, VisualFeatures

EPS = 1e-6


class RegionAttention(nn.MultiheadAttention):
    """Multi-head attention of one query to the patches of its own region, and to no others.

    Parameters, their names and their start values are those of torch's module; what it computes is too, had every
    region been a batch item. No mask, no positions, no residual, no dropout.

    Args:
        width: C.
        heads: attention heads.

    Raises:
        ValueError: if the width does not divide into the heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        divisor("heads", heads, "the width", width)
        super().__init__(width, heads)

    def forward(self, query_BMC: Tensor, key_BNC: Tensor, value_BNC: Tensor, side: int) -> Tensor:  # type: ignore[override] # other arguments
        """Attend.

        Args:
            query_BMC: one query per region, regions in raster order.
            key_BNC: keys of the patches, row-major over the grid.
            value_BNC: their values.
            side: regions along one edge of the grid; M is its square.

        Returns:
            `(B, M, C)`.
        """
        heads, width = self.num_heads, self.embed_dim
        inner = zip(self.in_proj_weight.split(width), self.in_proj_bias.split(width), strict=True)
        states = zip((query_BMC, key_BNC, value_BNC), inner, strict=True)
        query, key, value = (F.linear(one, *parts).unflatten(-1, (heads, -1)) for one, parts in states)
        # One query against few keys is a product and a sum over a view of the map: attention kernels, which want the
        # regions copied together first, take longer.
        keys, values = regions(key, side), regions(value, side)
        logits = (keys * query.unflatten(1, (side, side))[:, :, :, None, None]).sum(-1) * query.shape[-1] ** -0.5
        weights = logits.flatten(3, 4).softmax(dim=3).view_as(logits).unsqueeze(-1)
        return self.out_proj((weights * values).sum((3, 4)).flatten(3).flatten(1, 2))


class NormedMlp(nn.Module):
    """Two linear layers with a GELU between them, and LayerNorm."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.mlp, self.norm = Connector(width_in, width), nn.LayerNorm(width, eps=EPS)

    def forward(self, states: Tensor) -> Tensor:
        """`(..., width_in)` to `(..., width)`."""
        return self.norm(self.mlp(states))


def regions(states: Tensor, side: int) -> Tensor:
    """Patch states by region, a view: `(B, N, ...)` to `(B, side, side, s, s, ...)` with row before column twice."""
    stride = math.isqrt(states.shape[1]) // side
    return states.unflatten(1, (side, stride, side, stride)).transpose(2, 3)


def key_and_value(levels: int, width: int) -> tuple[NormedMlp, NormedMlp]:
    """Two separate paths from stacked levels to width C.

    Raises:
        ValueError: if there are no levels.
    """
    whole("levels", levels, "keys and values need a layer to come from")
    return NormedMlp(levels * width, width), NormedMlp(levels * width, width)


def coarse_map(patches_BNC: Tensor, grid: int, side: int) -> Tensor:
    """The patch map brought to `side` x `side` by bilinear interpolation in single precision, `(B, side * side, C)`.

    Without corner alignment and antialiasing, so an even stride gives the mean of the central 2 x 2 patches of each
    cell and an odd one its centre patch.
    """
    maps = patches_BNC.float().unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    return F.interpolate(maps, size=(side, side), mode="bilinear").permute(0, 2, 3, 1).flatten(1, 2).to(patches_BNC)


def levels_of(features: VisualFeatures, method: Compressor, levels: int) -> Tensor:
    """The stacked levels, `(B, N, levels * C)`.

    Raises:
        ValueError: if they are missing, another number of them than the method was built for, or of another grid.
    """
    states, name = features.need("levels_BNF"), method.declaration.name
    if states.shape[-1] != levels * method.width:
        raise ValueError(
            f"features.levels_BNF is {states.shape[-1]} wide, but this {name} was built for {levels} levels of "
            f"{method.width}: name {levels} hidden states in feature_levels"
        )
    if states.shape[1] != method.grid**2:
        raise ValueError(
            f"features.levels_BNF has {states.shape[1]} patches, but this {name} was built for a {method.grid} x "
            f"{method.grid} grid: resize the pictures, or build it for theirs"
        )
    return states


@register
class TokenPacker(Compressor):
    """Point-to-region attention from interpolated queries to keys and values out of several layers.

    The connector of the projector is the published module's last MLP. The number of parameters does not depend on
    the budget.

    Args:
        width: C.
        grid: side of the patch grid.
        tokens: M = (grid / s)^2, the paper's s being 2, 3 or 4; any s that divides the grid will do.
        levels: hidden states that stand side by side in `features.levels_BNF`, low to high.
        heads: attention heads; 8 of 128 in the paper.
    """

    declaration = Declaration(
        name="tokenpacker",
        source="TokenPacker, arXiv 2407.02392",
        reads=frozenset({"levels"}),
        trained=True,
    )

    def __init__(self, *, width: int, grid: int, tokens: int, levels: int = 4, heads: int = 8) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        self.levels, self.side = levels, grid // stride_of(grid, tokens)
        self.query = nn.Linear(width, width, bias=False)
        self.query_norm = nn.LayerNorm(width, eps=EPS)
        self.key, self.value = key_and_value(levels, width)
        self.attention = RegionAttention(width, heads)
        self.initialise()

    def initialise(self) -> None:
        """Truncated normal with deviation 0.02 and zero bias; the attention's input projections stay Xavier-uniform."""
        for linear in self.modules():
            if isinstance(linear, nn.Linear):
                init.trunc_normal_(linear.weight, std=0.02)
                if linear.bias is not None:
                    init.zeros_(linear.bias)

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """One token per region in raster order, `(B, M, C)`."""
        del query
        budget(self.tokens, tokens, "tokenpacker")
        levels = levels_of(features, self, self.levels)
        coarse = self.query_norm(self.query(coarse_map(features.patches_BNC, self.grid, self.side)))
        return CompressedTokens(tokens_BMC=self.attention(coarse, self.key(levels), self.value(levels), self.side))
