"""Random patches: the baseline that a method of selection has to beat (VTC-Bench, arXiv 2510.07143)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from qmop.compressors.base import Compressor, Declaration
from qmop.compressors.registry import register
from qmop.compressors.selection import asked_budget
from qmop.compressors.values import whole
from qmop.features import CompressedTokens, Query, VisualFeatures


@lru_cache(maxsize=256)
def random_places(seed: int, grid: int, tokens: int) -> tuple[int, ...]:
    """`tokens` different patches of a `grid` x `grid` map, ascending; the same for the same three numbers.

    That holds for one release of numpy, which may change how its generators permute: what must be repeated years
    later should keep the places (`kept_BM`), not the seed.
    """
    order = np.random.default_rng([seed, grid, tokens]).permutation(grid * grid)
    return tuple(sorted(order[:tokens].tolist()))


@register
class RandomTokens(Compressor):
    """One random subset of the patches per seed, grid and budget, in raster order.

    Every image gets the same subset, so that a result depends neither on the batch that an image came in nor on its
    place there. Subsets of different budgets are drawn apart: the smaller is not part of the larger.

    Args:
        width: C.
        grid: side of the patch grid.
        tokens: M; any budget from 1 to N may be asked for.
        seed: of the draw.

    Raises:
        ValueError: if the seed is negative.
    """

    declaration = Declaration(name="random_tokens", source="VTC-Bench, arXiv 2510.07143", elastic=True)

    def __init__(self, *, width: int, grid: int, tokens: int, seed: int = 0) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        self.seed = whole("seed", seed, "a generator cannot start from it", least=0)

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """The drawn patches, unchanged, `(B, M, C)`, and their indices.

        Raises:
            ValueError: if the budget exceeds the patches.
        """
        del query
        places = random_places(self.seed, self.grid, asked_budget(self, tokens))
        patches_BNC = features.patches_BNC
        kept_M = torch.tensor(places, device="cpu").to(patches_BNC.device, non_blocking=True)  # no wait for the device
        kept_BM = kept_M.expand(len(patches_BNC), -1)
        return CompressedTokens(tokens_BMC=patches_BNC[:, kept_M], kept_BM=kept_BM)
