"""QMoP: three branches that exist on their own, weighted by the query-guided router (Sec. 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from qmop.compressors.base import Compressor, Declaration, Reads, budget, one_of
from qmop.compressors.registry import build_compressor, check_options, option_names, register
from qmop.compressors.router import Router, Select, select_branches
from qmop.compressors.values import finite, whole
from qmop.features import CompressedTokens, Grid, Query, VisualFeatures

BRANCHES = ("resampler", "window_pool", "prune")
"""Types A, B and C of the paper's Table 4, in that order; also the order of the router's weights."""

ALIGN, TUNE = 1, 2
Execution = Literal["sparse", "dense"]
Concat = Literal["tokens", "channels"]
AlignQuery = Literal["none", "question"]
TextFeature = Literal["projected", "eos"]


@register
class Mixture(Compressor):
    """Stage 1 shows the tokens of all branches side by side; stage 2 and inference their weighted sum.

    What the paper leaves open, or says twice, is a field; the defaults are the reading that fits its figures best.
    Where neither the router nor pruning reads the question (`select="equal"` or a router whose `inputs` leave it out,
    and `lam=1` in the pruning branch), none is declared: no text tower is needed then.

    Args:
        width: C.
        grid: side of the patch grid.
        tokens: M.
        text_width: E, the width of the question's feature.
        stage: 1 aligns (router off, concatenation), 2 fuses.
        select: which branches count at inference: the `top_k` strongest (the paper's introduction), those above a
            `threshold` (its Sec. 3.4), or `all`; `equal` leaves the router out, in training too: plain fusion.
        top_k: how many branches count with `select="top_k"`.
        threshold: the least weight of a branch that counts with `select="threshold"`.
        execution: at inference, `sparse` runs a branch on the images that chose it and waits for the device once
            per batch to learn which; `dense` runs all branches, multiplies by the same weights and never waits.
        align_concat: stage 1 joins the branches along the `tokens` (3M tokens, which fits the shared connector) or
            the `channels` (M tokens of 3C, brought to C by a layer that stage 2 drops).
        align_query: what the pruning branch knows of the text in stage 1: `none`, since a caption used as the
            question would leak the target, or the `question` where samples have a human instruction.
        text_feature: what the router reads of the question: after the text tower's projection, or the `eos` state
            before it (then `text_width` is the text tower's own width).
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
        execution: Execution = "sparse",
        align_concat: Concat = "tokens",
        align_query: AlignQuery = "none",
        text_feature: TextFeature = "projected",
        router: dict[str, Any] | None = None,
        branches: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens)
        branches, router = branches or {}, router or {}
        whole("text_width", text_width, "it is the number of channels of the question's feature")
        _check(stage, select, top_k, threshold, branches)
        one_of("execution", execution, Execution)
        one_of("align_concat", align_concat, Concat)
        one_of("align_query", align_query, AlignQuery)
        one_of("text_feature", text_feature, TextFeature)
        check_options("the router", router, ["hidden", "activation", "inputs", "normalise", "temperature"])
        self.stage, self.select, self.top_k, self.threshold = stage, select, top_k, threshold
        self.execution, self.align_concat, self.align_query = execution, align_concat, align_query
        self.text_feature = text_feature
        self.branches = nn.ModuleDict(
            {
                name: build_compressor(
                    name,
                    width=width,
                    grid=grid,
                    tokens=tokens,
                    **{**self.branch_defaults(name), **branches.get(name, {})},
                )
                for name in BRANCHES
            }
        )
        self.router = Router(image_width=width, text_width=text_width, branches=len(BRANCHES), **router)
        self.text_width = text_width
        reads = self._reads()
        self.declaration = replace(self.declaration, reads=reads, text_guided="query" in reads)
        self.merge = None
        if stage == ALIGN and align_concat == "channels":
            self.merge = nn.Linear(len(BRANCHES) * width, width)
            self.initialise()

    def _reads(self) -> frozenset[Reads]:
        """What the router reads, and every branch."""
        reads: set[Reads] = {"summary"}
        if self.select != "equal" and self.router.inputs in ("both", "text"):
            reads.add("query")
        for branch in self.branches.values():
            assert isinstance(branch, Compressor)
            reads |= branch.declaration.reads
        return frozenset(reads)

    def branch_defaults(self, name: str) -> dict[str, Any]:
        """Fields of a branch that the user may still change."""
        del name
        return {}

    def initialise(self) -> None:
        """Channel concatenation starts as the mean of the branches."""
        if self.merge is not None:
            eye = torch.eye(self.width, device=self.merge.weight.device) / len(BRANCHES)
            init.copy_(self.merge.weight, eye.repeat(1, len(BRANCHES)))
            init.zeros_(self.merge.bias)

    def token_count(self, tokens: int, *, grid: Grid, stage: int) -> int:
        """3M tokens in stage 1 (M with channel concatenation), M afterwards."""
        del grid
        return len(BRANCHES) * tokens if stage == ALIGN and self.align_concat == "tokens" else tokens

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """Compress by the present stage.

        Returns:
            Stage 1: `(B, 3M, C)`. Otherwise `(B, M, C)` with the branch weights `(B, 3)`; in evaluation mode
            only the chosen branches count.

        Raises:
            ValueError: if a question is read and missing, or alignment by channels was set after building.
        """
        count = self.budget(tokens)
        if self.stage == ALIGN:
            if count != self.tokens:
                raise ValueError(
                    f"tokens is {count}, but stage {ALIGN} shows every branch at {self.tokens}: leave it out"
                )
            return self._align(features, query)
        if query is None and "query" in self._reads():
            raise ValueError(
                f"query is missing, but {self.declaration.name} weights its branches or prunes by the question: "
                "pass query= to the processor"
            )
        weights_BS = self._weights(features, query)
        if self.training or self.select in ("all", "equal"):
            return self._dense(features, query, weights_BS, count)
        chosen_BS = select_branches(weights_BS, self.select, self.top_k, self.threshold)
        run = self._dense if self.execution == "dense" else self._sparse
        return run(features, query, chosen_BS, count)

    def _weights(self, features: VisualFeatures, query: Query | None) -> Tensor:
        summary_BC = features.need("summary_BC")
        if self.select == "equal":
            return summary_BC.new_full((len(summary_BC), len(BRANCHES)), 1 / len(BRANCHES))
        if query is None:  # the router does not read it
            return self.router(summary_BC, summary_BC.new_zeros(len(summary_BC), self.text_width))
        return self.router(summary_BC, query.text_BE if self.text_feature == "projected" else query.need("eos_BC"))

    def budget(self, tokens: int | None) -> int:
        """The number of tokens of this call."""
        return budget(self.tokens, tokens, self.declaration.name)

    def _align(self, features: VisualFeatures, query: Query | None) -> CompressedTokens:
        asked = query if self.align_query == "question" else None
        parts: list[Tensor] = []
        for branch in self.branches.values():
            assert isinstance(branch, Compressor)
            parts.append(branch.align(features, asked).tokens_BMC)
        if self.align_concat == "tokens":
            return CompressedTokens(tokens_BMC=torch.cat(parts, dim=1))
        return CompressedTokens(tokens_BMC=self._merge(torch.cat(parts, dim=2)))

    def _merge(self, channels: Tensor) -> Tensor:
        if self.merge is None:
            raise ValueError(
                f"stage is {ALIGN} and align_concat is 'channels', but {self.declaration.name} was not built with "
                "both, so it lacks the layer that joins the channels: build it so, or align the tokens"
            )
        merged: Tensor = self.merge(channels)
        return merged

    def _dense(self, features: VisualFeatures, query: Query | None, weights_BS: Tensor, count: int) -> CompressedTokens:
        outputs = [branch(features, query, tokens=count) for branch in self.branches.values()]
        stacked_BSMC = torch.stack([output.tokens_BMC for output in outputs], dim=1)
        fused = torch.einsum("bs,bsmc->bmc", weights_BS.to(stacked_BSMC.dtype), stacked_BSMC)
        return CompressedTokens(tokens_BMC=fused, branch_weights_BS=weights_BS, kept_BM=outputs[-1].kept_BM)

    def _sparse(
        self, features: VisualFeatures, query: Query | None, weights_BS: Tensor, count: int
    ) -> CompressedTokens:
        patches = features.patches_BNC
        fused = patches.new_zeros(len(patches), count, self.width)
        # The one wait for the device: which images run which branch. A weight that is no number counts, so that it is
        # seen in the tokens as it is in dense execution.
        chosen = (weights_BS != 0).cpu()
        for place, branch in enumerate(self.branches.values()):
            rows = chosen[:, place].nonzero().squeeze(1).to(patches.device)
            if not len(rows):
                continue
            taken = (features, query)
            if len(rows) < len(patches):
                taken = (features.rows(rows), None if query is None else query.rows(rows))
            weight = weights_BS[rows, place].to(patches.dtype)[:, None, None]
            fused = fused.index_add(0, rows, weight * branch(*taken, tokens=count).tokens_BMC)
        return CompressedTokens(tokens_BMC=fused, branch_weights_BS=weights_BS)


def _check(stage: int, select: str, top_k: int, threshold: float, branches: dict[str, dict[str, Any]]) -> None:
    if stage not in (ALIGN, TUNE):
        raise ValueError(f"stage is {stage}, but qmop has stage {ALIGN} (align) and {TUNE} (tune) only")
    one_of("select", select, Select)
    whole("top_k", top_k, f"there are {len(BRANCHES)} branches", most=len(BRANCHES))
    if not (finite(threshold) and 0.0 <= threshold <= 1.0):
        raise ValueError(f"threshold is {threshold!r}, but weights sum to one: choose a number from 0 to 1")
    if not isinstance(branches, dict):
        raise ValueError(f"branches is {branches!r}: give each branch's fields under its name, {', '.join(BRANCHES)}")
    if unknown := set(branches) - set(BRANCHES):
        raise ValueError(f"branches names {sorted(unknown)}, but the branches are {', '.join(BRANCHES)}")
    for name, options in branches.items():
        check_options(f"branch {name!r}", options, option_names(name))
