"""Average pooling of the patch map: the simplest baseline, and DeCo's design."""

from __future__ import annotations

from torch.nn import functional as F

from qmop.compressors.base import Compressor, Declaration, stride_of
from qmop.compressors.registry import register
from qmop.features import CompressedTokens, Query, VisualFeatures


@register
class AveragePool(Compressor):
    """Mean over non-overlapping s x s windows; has no parameters, so any fitting budget may be asked for."""

    declaration = Declaration(name="average_pool", source="DeCo, arXiv 2405.20985", elastic=True)

    def __init__(self, *, width: int, grid: int, tokens: int) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        stride_of(grid, tokens)

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """Pooled tokens in raster order, `(B, M, C)`."""
        del query
        stride = stride_of(self.grid, self.tokens if tokens is None else tokens)
        map_BCHW = features.patches_BNC.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return CompressedTokens(tokens_BMC=F.avg_pool2d(map_BCHW, stride).flatten(2).transpose(1, 2))
