"""Honeybee's C-Abstractor: convolutions, average pooling, convolutions, then a readout."""

from __future__ import annotations

from itertools import chain, repeat

from torch import Tensor, empty, nn
from torch.nn import functional as F
from transformers import initialization as init

from qmop.compressors.base import Compressor, Declaration, budget
from qmop.compressors.convolutions import SqueezeExcite, as_map, convolve, pool_to, side_of, start_normal
from qmop.compressors.registry import register
from qmop.compressors.values import divisor, finite, whole
from qmop.features import CompressedTokens, Query, VisualFeatures


class Bottleneck(nn.Module):
    """RegNet's block at stride 1: 1 x 1, 3 x 3, squeeze-and-excitation, 1 x 1; a normed 1 x 1 skip if widths differ.

    LayerNorm over channels after every convolution, SiLU after the first two and after the sum.

    Args:
        entering: channels of the input.
        width: channels inside and of the output (bottleneck ratio 1).
        group_width: channels per group of the 3 x 3 convolution.
        squeeze: width of the gate, as a share of `entering`.
    """

    def __init__(self, entering: int, width: int, group_width: int, squeeze: float) -> None:
        super().__init__()
        self.enter, self.enter_norm = nn.Linear(entering, width, bias=False), nn.LayerNorm(width)
        self.spatial = nn.Conv2d(width, width, 3, padding=1, groups=width // group_width, bias=False)
        self.spatial_norm = nn.LayerNorm(width)
        self.excite = SqueezeExcite(width, max(1, round(entering * squeeze)), "silu")
        self.leave, self.leave_norm = nn.Linear(width, width, bias=False), nn.LayerNorm(width)
        self.skip: nn.Module = nn.Identity()
        if entering != width:
            self.skip = nn.Sequential(nn.Linear(entering, width, bias=False), nn.LayerNorm(width))

    def forward(self, map_BHWC: Tensor) -> Tensor:
        """`(B, H, W, entering)` to `(B, H, W, width)`."""
        hidden = F.silu(self.enter_norm(self.enter(map_BHWC)))
        hidden = self.excite(F.silu(self.spatial_norm(convolve(self.spatial, hidden))))
        return F.silu(self.leave_norm(self.leave(hidden)) + self.skip(map_BHWC))


@register
class CAbstractor(Compressor):
    """Bottleneck blocks over the patch map, average pooling to G x G, as many blocks again, a two-layer readout.

    The blocks are those of the published code, which leaves timm's `RegStage` at its defaults: bottleneck ratio 1,
    groups of one channel (so the 3 x 3 is depthwise), a gate of a quarter of the entering channels, no bias in
    convolutions, LayerNorm with eps 1e-5. Honeybee reads the last layer of its tower; here the model's selected
    layer is read, as by every other method.

    Args:
        width: C.
        grid: side of the patch grid.
        tokens: M = G^2; G need not divide the grid (Honeybee-13B pools 24 x 24 to 16 x 16).
        language_width: D.
        hidden: width of the blocks; C when absent, which for CLIP ViT-L is the published 1024.
        depth: blocks before and blocks after pooling.
        group_width: channels per group of the 3 x 3 convolutions.
        squeeze: width of the gates, as a share of the channels that enter a block.
        positions: add a learned position to each patch first.
    """

    declaration = Declaration(name="c_abstractor", source="Honeybee, arXiv 2312.06742", trained=True, readout="own")

    def __init__(
        self,
        *,
        width: int,
        grid: int,
        tokens: int,
        language_width: int = 4096,
        hidden: int | None = None,
        depth: int = 3,
        group_width: int = 1,
        squeeze: float = 0.25,
        positions: bool = True,
    ) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        hidden = width if hidden is None else hidden
        whole("language_width", language_width, "the language model reads that many channels")
        _check(hidden, depth, group_width, squeeze)
        self.side = side_of(grid, tokens)
        self.position_NC = nn.Parameter(empty(grid * grid, width)) if positions else None

        def stage(entering: int) -> nn.Sequential:
            widths = chain([entering], repeat(hidden, depth - 1))
            return nn.Sequential(*(Bottleneck(enters, hidden, group_width, squeeze) for enters in widths))

        self.before, self.after = stage(width), stage(hidden)
        self.readout = nn.Sequential(
            nn.Linear(hidden, language_width), nn.SiLU(), nn.Linear(language_width, language_width)
        )
        self.initialise()

    def initialise(self) -> None:
        """Normal weights and positions of deviation 0.02, zero biases, as published."""
        start_normal(self)
        if self.position_NC is not None:
            init.trunc_normal_(self.position_NC, std=0.02)

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """Tokens in raster order, `(B, M, D)`."""
        del query
        budget(self.tokens, tokens, "c_abstractor")
        map_BHWC = as_map(features, self.grid)
        if self.position_NC is not None:
            map_BHWC = map_BHWC + self.position_NC.unflatten(0, (self.grid, self.grid))
        pooled_BHWC = pool_to(self.before(map_BHWC), self.side)
        return CompressedTokens(tokens_BMC=self.readout(self.after(pooled_BHWC).flatten(1, 2)))


def _check(hidden: int, depth: int, group_width: int, squeeze: float) -> None:
    whole("hidden", hidden, "it is the number of channels of the blocks")
    whole("depth", depth, "each stage needs a block (without any it would be average_pool)")
    divisor("group_width", group_width, "hidden", hidden)
    if not finite(squeeze) or squeeze <= 0:
        raise ValueError(f"squeeze is {squeeze!r}, but a gate needs some width: choose a positive share, such as 0.25")
