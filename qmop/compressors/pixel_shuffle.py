"""Pixel shuffle: neighbouring patches side by side in the channels, then a readout (InternVL-1.5)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from qmop.compressors.base import Compressor, Declaration, budget, one_of, stride_of
from qmop.compressors.convolutions import as_map, start_normal, start_uniform
from qmop.compressors.registry import register
from qmop.compressors.values import whole
from qmop.features import CompressedTokens, Query, VisualFeatures

Style = Literal["internvl", "linear"]


def space_to_channels(map_BHWC: Tensor, stride: int) -> Tensor:
    """Cells of s x s patches to one token each, `(B, H W / s^2, s^2 C)`.

    Cells come in raster order, and so do the patches inside a cell. (InternVL's first version left the map of cells
    transposed; this is its second.)
    """
    batch, height, width, channels = map_BHWC.shape
    down, across = height // stride, width // stride
    cut = map_BHWC.reshape(batch, down, stride, across, stride, channels)
    return cut.transpose(2, 3).reshape(batch, down * across, stride * stride * channels)


@register
class PixelShuffle(Compressor):
    """s x s neighbours become the channels of one token, which a readout of its own brings to width D.

    Args:
        width: C.
        grid: side of the patch grid.
        tokens: M = (grid / s)^2.
        language_width: D.
        style: `internvl`: LayerNorm, Linear s^2 C to D, GELU, Linear D to D; `linear`: a single Linear without
            bias, as in SmolVLM and nanoVLM. Each starts as its authors start it: PyTorch's own values, or a normal
            of deviation 0.02.
    """

    declaration = Declaration(
        name="pixel_shuffle", source="InternVL-1.5, arXiv 2404.16821", trained=True, readout="own"
    )

    def __init__(
        self, *, width: int, grid: int, tokens: int, language_width: int = 4096, style: Style = "internvl"
    ) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        one_of("style", style, Style)
        whole("language_width", language_width, "the language model reads that many channels")
        self.stride, self.style = stride_of(grid, tokens), style
        cell = self.stride**2 * width
        if style == "linear":
            self.readout = nn.Sequential(nn.Linear(cell, language_width, bias=False))
        else:
            self.readout = nn.Sequential(
                nn.LayerNorm(cell),
                nn.Linear(cell, language_width),
                nn.GELU(),
                nn.Linear(language_width, language_width),
            )
        self.initialise()

    def initialise(self) -> None:
        """The start values of the chosen style."""
        start_normal(self.readout) if self.style == "linear" else start_uniform(self.readout)

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """One token per cell in raster order, `(B, M, D)`."""
        del query
        budget(self.tokens, tokens, "pixel_shuffle")
        return CompressedTokens(tokens_BMC=self.readout(space_to_channels(as_map(features, self.grid), self.stride)))
