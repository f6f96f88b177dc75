"""FastV: visual tokens dropped inside the language model, by what the prompt's last token attends to."""

from __future__ import annotations

import torch
from torch import Tensor

from qmop.compressors.base import Compressor, Declaration, budget
from qmop.compressors.registry import register
from qmop.compressors.selection import best, raster
from qmop.compressors.values import whole
from qmop.features import CompressedTokens, Grid, Query, VisualFeatures


@register
class FastV(Compressor):
    """Every patch enters the language model; after its first layers the M most attended visual tokens go on.

    Attention is that of the prompt's last token in the last full layer, mean over heads. Kept tokens stay in raster
    order and at their positions (arXiv 2403.06764, Sec. 4). Tokens are dropped once, at prefill, so that the key and
    value caches of all later layers are short; the paper's other variant chooses anew at every step, without caches.
    The question is read by the language model itself, so no text tower is needed. See `qmop.in_llm`.

    Args:
        width: C.
        grid: side of the patch grid.
        tokens: M, visual tokens of an image in the layers after `layer`.
        layer: K, how many layers see every token (2 in the paper).

    Raises:
        ValueError: if no layer would see every token.
    """

    declaration = Declaration(name="fastv", source="FastV, arXiv 2403.06764", text_guided=True, acts="in_llm")

    def __init__(self, *, width: int, grid: int, tokens: int, layer: int = 2) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        self.layer = whole("layer", layer, "attention is read from the layer before")

    def token_count(self, tokens: int, *, grid: Grid, stage: int) -> int:
        """Every patch, since nothing is dropped before the language model."""
        del tokens, stage
        return grid[0] * grid[1]

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """Every patch, unchanged, `(B, N, C)`."""
        del query
        budget(self.tokens, tokens, "fastv")
        patches_BNC = features.patches_BNC
        kept_N = torch.arange(patches_BNC.shape[1], device=patches_BNC.device)
        return CompressedTokens(tokens_BMC=patches_BNC, kept_BM=kept_N.expand(len(patches_BNC), -1))

    def select(self, attention_BN: Tensor) -> Tensor:
        """The patches of each image that go on, ascending, `(B, M)`; equally attended ones by index.

        Args:
            attention_BN: attention of the prompt's last token to the image's tokens, mean over heads.
        """
        return raster(best(attention_BN, self.tokens))
