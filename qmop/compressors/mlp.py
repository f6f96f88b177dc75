"""No compression: every patch goes to the connector, as in LLaVA-1.5."""

from __future__ import annotations

from qmop.compressors.base import Compressor, Declaration, budget
from qmop.compressors.registry import register
from qmop.features import CompressedTokens, Query, VisualFeatures


@register
class Identity(Compressor):
    """The uncompressed reference: N tokens."""

    declaration = Declaration(name="mlp", source="LLaVA-1.5")

    def __init__(self, *, width: int, grid: int, tokens: int) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        budget(grid * grid, tokens, "mlp")

    @classmethod
    def default_tokens(cls, grid: int) -> int:
        """Every patch."""
        return grid * grid

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """All patches, unchanged: `(B, N, C)`."""
        del query
        budget(self.tokens, tokens, "mlp")
        return CompressedTokens(tokens_BMC=features.patches_BNC)
