"""FasterVLM: keep the patches that the class token looks at (arXiv 2412.01818)."""

from __future__ import annotations

from qmop.compressors.base import Compressor, Declaration
from qmop.compressors.registry import register
from qmop.compressors.selection import asked_budget, best, raster, take
from qmop.features import CompressedTokens, Query, VisualFeatures


@register
class FasterVLM(Compressor):
    """Top-M by the class token's attention in the block that made the patches, in raster order.

    The attention is the mean over heads; ties go to the lower index. Any budget from 1 to N may be asked for.
    """

    declaration = Declaration(
        name="fastervlm",
        source="FasterVLM, arXiv 2412.01818",
        reads=frozenset({"cls_attention"}),
        elastic=True,
        attention_layer=-2,
    )

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """The kept patches, unchanged, `(B, M, C)`, and their indices.

        Raises:
            ValueError: if the budget exceeds the patches, or the class token's attention is missing.
        """
        del query
        kept_BM = raster(best(features.need("cls_attention_BN"), asked_budget(self, tokens)))
        return CompressedTokens(tokens_BMC=take(features.patches_BNC, kept_BM), kept_BM=kept_BM)
