"""A smaller picture instead of fewer tokens: the baseline that VTC-Bench found ahead of many methods."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from qmop.compressors.base import Compressor, Declaration, in_range
from qmop.compressors.registry import register
from qmop.features import CompressedTokens, Query, VisualFeatures


def side_of(tokens: int, grid: int) -> int:
    """G of a budget of G x G tokens, from 1 x 1 to the whole grid.

    Raises:
        ValueError: if the budget is no square, or more than the grid holds.
    """
    side = math.isqrt(in_range(tokens, grid))
    if side * side != tokens:
        fitting = f"{side * side} or {(side + 1) ** 2}"
        raise ValueError(f"tokens is {tokens}, but downsample makes a square map of tokens: choose {fitting}")
    return side


@register
class Downsample(Compressor):
    """The picture is shrunk to G x G patches, G^2 = M, before the tower sees it; all its patches are kept.

    The tower runs on the smaller picture with position embeddings interpolated to its grid, so it too gets cheaper.
    Pixels are resized after normalisation, bicubic with antialiasing: the same as before it, but for overshoot at
    sharp edges, which is not clipped. Any square budget up to the grid may be asked for, whether or not it divides.
    """

    declaration = Declaration(name="downsample", source="VTC-Bench, arXiv 2510.07143", elastic=True)

    def __init__(self, *, width: int, grid: int, tokens: int) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        side_of(tokens, grid)

    def picture(self, pixels_BCHW: Tensor, patch_size: int, tokens: int | None = None) -> Tensor:
        """The pictures at G patches a side, `(B, channels, G * patch_size, G * patch_size)`.

        Raises:
            ValueError: if the budget is no square, or more than the grid holds.
        """
        size = self._side(tokens) * patch_size
        if pixels_BCHW.shape[-2:] == (size, size):
            return pixels_BCHW
        small = F.interpolate(pixels_BCHW.float(), size=(size, size), mode="bicubic", antialias=True)
        return small.to(pixels_BCHW.dtype)

    def check_grid(self, features: VisualFeatures) -> None:
        """Nothing yet: the grid of the small picture depends on the budget of the call."""

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """All patches of the small picture, unchanged, `(B, M, C)`.

        Raises:
            ValueError: if the features are not those of the small picture.
        """
        del query
        side = self._side(tokens)
        count = features.patches_BNC.shape[1]
        grid = (side, side) if features.grid is None else tuple(features.grid)
        if count != side * side or grid != (side, side):
            raise ValueError(
                f"features.patches_BNC has {count} patches, but downsample to {side * side} tokens reads those of a "
                f"picture of {side} x {side} patches: show the tower what picture() returns for the same budget"
            )
        return CompressedTokens(tokens_BMC=features.patches_BNC)

    def _side(self, tokens: int | None) -> int:
        return side_of(self.tokens if tokens is None else tokens, self.grid)
