"""QMoP: three branches that exist on their own, weighted by the query-guided router (Sec. 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qmop.compressors.base import Compressor, Declaration, budget, one_of
from qmop.compressors.registry import build_compressor, check_options, method_class, register
from qmop.compressors.router import Router, Select, select_branches
from qmop.features import CompressedTokens, Grid, Query, VisualFeatures

BRANCHES = ("resampler", "window_pool", "prune")
"""Types A, B and C of the paper's Table 4, in that order; also the order of the router's weights."""

ALIGN, TUNE = 1, 2


@register
class Mixture(Compressor):
    """Stage 1 shows the tokens of all branches side by side (3M); stage 2 and inference their weighted sum (M).

    In stage 1 the pruning branch sees no question: captions are the targets there, and a caption used as the
    question would leak (open in the paper).

    Args:
        width: C.
        grid: side of the patch grid.
        tokens: M.
        text_width: E, the width of the question's feature.
        stage: 1 aligns (router off, concatenation), 2 fuses.
        select: which branches run at inference: the `top_k` strongest, those above a `threshold`, or `all`.
        top_k: how many branches run with `select="top_k"`.
        threshold: the least weight of a branch that runs with `select="threshold"`.
        router: the router's own fields.
        branches: each branch's own fields, by its name.
    """

    declaration = Declaration(
        name="qmop",
        source="QMoP, arXiv 2603.21232",
        reads=frozenset({"summary", "cls_attention", "text_space", "query"}),
        trained=True,
        text_guided=True,
    )

    def __init__(
        self,
        *,
        width: int,
        grid: int,
        tokens: int,
        text_width: int = 768,
        stage: int = TUNE,
        select: Select = "top_k",
        top_k: int = 2,
        threshold: float = 1 / 3,
        router: dict[str, Any] | None = None,
        branches: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        branches, router = branches or {}, router or {}
        _check(stage, select, top_k, threshold, branches)
        for name, options in branches.items():
            check_options(f"branch {name!r}", options, list(options))
        check_options("the router", router, ["hidden", "normalise", "temperature"])
        self.stage, self.select, self.top_k, self.threshold = stage, select, top_k, threshold
        self.branches = nn.ModuleDict(
            {
                name: build_compressor(name, width=width, grid=grid, tokens=tokens, **branches.get(name, {}))
                for name in BRANCHES
            }
        )
        self.router = Router(image_width=width, text_width=text_width, branches=len(BRANCHES), **router)

    @classmethod
    def token_count(cls, tokens: int, *, grid: Grid, stage: int) -> int:
        """3M tokens in stage 1, M afterwards."""
        del grid
        return len(BRANCHES) * tokens if stage == ALIGN else tokens

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """Compress by the present stage.

        Returns:
            Stage 1: `(B, 3M, C)`. Otherwise `(B, M, C)` with the branch weights `(B, 3)`; in evaluation mode
            only the chosen branches run, each only on the images that chose it.

        Raises:
            ValueError: if the router runs without a question.
        """
        budget(self.tokens, tokens, "qmop")
        if self.stage == ALIGN:
            parts = [branch(features, None).tokens_BMC for branch in self.branches.values()]
            return CompressedTokens(tokens_BMC=torch.cat(parts, dim=1))
        if query is None:
            raise ValueError(
                "query is missing, but qmop weights its branches by the question: pass query= to the processor"
            )
        weights_BS = self.router(features.need("summary_BC"), query.text_BE)
        if self.training or self.select == "all":
            return self._dense(features, query, weights_BS)
        return self._sparse(features, query, select_branches(weights_BS, self.select, self.top_k, self.threshold))

    def _dense(self, features: VisualFeatures, query: Query, weights_BS: Tensor) -> CompressedTokens:
        outputs = [branch(features, query) for branch in self.branches.values()]
        stacked_BSMC = torch.stack([output.tokens_BMC for output in outputs], dim=1)
        fused = torch.einsum("bs,bsmc->bmc", weights_BS.to(stacked_BSMC.dtype), stacked_BSMC)
        return CompressedTokens(tokens_BMC=fused, branch_weights_BS=weights_BS, kept_BM=outputs[-1].kept_BM)

    def _sparse(self, features: VisualFeatures, query: Query, weights_BS: Tensor) -> CompressedTokens:
        patches = features.patches_BNC
        fused = patches.new_zeros(len(patches), self.tokens, self.width)
        chosen = (weights_BS > 0).cpu()  # the one wait for the device: which images run which branch
        for place, branch in enumerate(self.branches.values()):
            rows = chosen[:, place].nonzero().squeeze(1).to(patches.device)
            if not len(rows):
                continue
            some = len(rows) < len(patches)
            output = branch(features.rows(rows), query.rows(rows)) if some else branch(features, query)
            weight = weights_BS[rows, place].to(patches.dtype)[:, None, None]
            fused = fused.index_add(0, rows, weight * output.tokens_BMC)
        return CompressedTokens(tokens_BMC=fused, branch_weights_BS=weights_BS)


def _check(stage: int, select: str, top_k: int, threshold: float, branches: dict[str, dict[str, Any]]) -> None:
    if stage not in (ALIGN, TUNE):
        raise ValueError(f"stage is {stage}, but qmop has stage {ALIGN} (align) and {TUNE} (tune) only")
    one_of("select", select, Select)
    if not 1 <= top_k <= len(BRANCHES):
        raise ValueError(f"top_k is {top_k}, but there are {len(BRANCHES)} branches: choose 1 to {len(BRANCHES)}")
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold is {threshold}, but weights sum to one: choose a number from 0 to 1")
    if unknown := set(branches) - set(BRANCHES):
        raise ValueError(f"branches names {sorted(unknown)}, but the branches are {', '.join(BRANCHES)}")
    for name in BRANCHES:
        method_class(name)
