"""MobileVLM's lightweight down-sample projectors: connect every patch, then shrink the map at language width."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from qmop.compressors.base import Compressor, Declaration, budget, stride_of
from qmop.compressors.convolutions import SqueezeExcite, as_map, convolve, pool_to, side_of, start_uniform
from qmop.compressors.registry import register
from qmop.features import CompressedTokens, Query, VisualFeatures


@register
class LDPv2(Compressor):
    """Average pooling of the connected map to G x G, then a position block: depthwise 3 x 3 with an identity skip.

    Args:
        width: D, because the connector comes first.
        grid: side of the patch grid.
        tokens: M = G^2; G need not divide the grid.
    """

    declaration = Declaration(
        name="ldp_v2",
        source="MobileVLM V2, arXiv 2402.03766",
        trained=True,
        readout="connector_first",
    )

    def __init__(self, *, width: int, grid: int, tokens: int) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        self.side = side_of(grid, tokens)
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.initialise()

    def initialise(self) -> None:
        """PyTorch's own start values, as published."""
        start_uniform(self.position)

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """Pooled and placed tokens in raster order, `(B, M, D)`."""
        del query
        budget(self.tokens, tokens, "ldp_v2")
        pooled_BHWC = pool_to(as_map(features, self.grid), self.side)
        return CompressedTokens(tokens_BMC=(convolve(self.position, pooled_BHWC) + pooled_BHWC).flatten(1, 2))


class InvertedResidual(nn.Module):
    """MobileNetV3's block without expansion: depthwise 3 x 3, squeeze-and-excitation, 1 x 1; a skip at stride 1.

    Args:
        width: channels throughout.
        stride: of the depthwise convolution.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=width, bias=False)
        self.depthwise_norm = nn.LayerNorm(width)
        self.excite = SqueezeExcite(width, _whole_eights(width // 4), "relu")
        self.pointwise = nn.Linear(width, width, bias=False)
        self.pointwise_norm = nn.LayerNorm(width)
        self.skip = stride == 1

    def forward(self, map_BHWC: Tensor) -> Tensor:
        """`(B, H, W, D)` to `(B, H / s, W / s, D)`."""
        hidden = F.hardswish(self.depthwise_norm(convolve(self.depthwise, map_BHWC)))
        hidden = self.pointwise_norm(self.pointwise(self.excite(hidden)))
        return map_BHWC + hidden if self.skip else hidden


@register
class LDP(Compressor):
    """The first version: two inverted-residual blocks over the connected map, of stride 1 and stride s.

    Beyond stride 3 its 3 x 3 kernel leaves patches out that no token sees directly.

    Args:
        width: D, because the connector comes first.
        grid: side of the patch grid.
        tokens: M = (grid / s)^2.
    """

    declaration = Declaration(name="ldp", source="MobileVLM, arXiv 2312.16886", trained=True, readout="connector_first")

    def __init__(self, *, width: int, grid: int, tokens: int) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        self.blocks = nn.Sequential(InvertedResidual(width, 1), InvertedResidual(width, stride_of(grid, tokens)))
        self.initialise()

    def initialise(self) -> None:
        """PyTorch's own start values, as published."""
        start_uniform(self.blocks)

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """Tokens in raster order, `(B, M, D)`."""
        del query
        budget(self.tokens, tokens, "ldp")
        return CompressedTokens(tokens_BMC=self.blocks(as_map(features, self.grid)).flatten(1, 2))


def _whole_eights(channels: int) -> int:
    """MobileNet's rounding to a multiple of eight that loses no more than a tenth."""
    rounded = max(8, (channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
