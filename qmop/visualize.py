"""What a method did to a picture, drawn over it: kept and merged patches, scores, attention, branch weights.

The picture that is shown is what the vision tower saw, cropped and resized.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from qmop.answering import prompt
from qmop.attachment import compression_of
from qmop.compressors.base import Compressor
from qmop.compressors.mixture import BRANCHES, Mixture
from qmop.compressors.projector import Projector
from qmop.compressors.prune import Prune
from qmop.compressors.resampler import Resampler
from qmop.compressors.window_pool import WindowPool
from qmop.drawing import (
    GAP,
    darken_others,
    heat_over,
    side_by_side,
    stacked,
    text_line,
    tint_groups,
    titled,
    to_grid,
    weight_bars,
)
from qmop.features import CompressedTokens, Grid, Query, VisualFeatures
from qmop.fitting import take_image_inputs
from qmop.pixels import shown


def explain(model: Any, processor: Any, image: Image.Image, question: str) -> Image.Image:
    """Everything that can be shown about one picture and one question; a row of panels per tile of the picture.

    Args:
        model: ours, or a stock LLaVA with a compressor attached.
        processor: the model's.
        image: the picture.
        question: what is asked about it.

    Raises:
        ValueError: if the model's projector is none of ours, or the picture is a sliver.
    """
    image = shown(image)
    inputs = _inputs(model, processor, image, question)
    projector, features, query, compressed = _watched(model, inputs)
    compressor = projector.compressor
    if isinstance(compressor, Mixture) and compressed.kept_BM is None and query is not None:
        compressed.kept_BM = _branch(compressor, "prune")(features, query).kept_BM
    tokens = int(compressed.counts_B[0])
    if compressor.declaration.acts == "in_llm":
        compressed.kept_BM, tokens = _kept_inside(model, processor, image, question, compressor), compressor.tokens
    heat, grid = heat_maps(compressor, features, query), features.grid or (compressor.grid, compressor.grid)
    pixels = inputs["pixel_values"].flatten(0, -4)
    rows = [
        draw(_picture(pixels[row], processor), compressed, grid, row=row, heat={k: v[row] for k, v in heat.items()})
        for row in range(len(pixels))
    ]
    head = f"{projector.declaration.name}, {tokens} tokens: {question}"
    return stacked([side_by_side([text_line(head, rows[0].width - 2 * GAP)]), *rows])


def draw(
    image: Image.Image,
    compressed: CompressedTokens,
    grid: Grid,
    *,
    row: int = 0,
    heat: Mapping[str, Tensor] | None = None,
    branches: Sequence[str] = BRANCHES,
) -> Image.Image:
    """Panels side by side: the picture, kept patches, merged patches, heat maps, branch weights; those that there are.

    Args:
        image: what the vision tower saw.
        compressed: what a method returned.
        grid: patches down and across.
        row: the image's place in the batch.
        heat: titles and numbers, one for each patch, `(N,)`.
        branches: names of the branches, for mixtures.

    Raises:
        ValueError: if numbers do not suit the grid.
    """
    image = to_grid(image, grid)
    panels = [titled("picture", image)]
    groups = None if compressed.groups_BN is None else compressed.groups_BN[row].tolist()
    if compressed.kept_BM is not None:
        kept = _kept(compressed, row, groups)
        who = "kept" if compressed.branch_weights_BS is None else "prune keeps"
        panels.append(titled(f"{who}: {len(kept)} of {grid[0] * grid[1]}", darken_others(image, grid, kept)))
    if groups is not None:
        panels.append(titled("merged: one colour, one token", tint_groups(image, grid, groups)))
    for title, values_N in (heat or {}).items():
        low, high = float(values_N.min()), float(values_N.max())
        panels.append(titled(f"{title}, {low:.3g} to {high:.3g}", heat_over(image, grid, values_N)))
    if compressed.branch_weights_BS is not None:
        panels.append(
            titled("branch weights", weight_bars(branches, compressed.branch_weights_BS[row].tolist(), image))
        )
    return side_by_side(panels)


@torch.no_grad()
def heat_maps(compressor: Compressor, features: VisualFeatures, query: Query | None) -> dict[str, Tensor]:
    """What a method looks at, patch by patch: titles and `(B, N)`, empty for methods without such numbers."""
    if isinstance(compressor, Mixture):
        parts = [heat_maps(_branch(compressor, name), features, query) for name in BRANCHES]
        return {title: values for part in parts for title, values in part.items()}
    if isinstance(compressor, Prune):
        return {} if query is None and compressor.lam < 1 else {"prune score": compressor.score(features, query)}
    if isinstance(compressor, WindowPool):
        return {"window attention": window_attention(compressor, features)}
    if isinstance(compressor, Resampler):
        return {"resampler attention": resampler_attention(compressor, features)}
    if features.cls_attention_BN is not None:
        return {"class attention": features.cls_attention_BN}
    return {}


@torch.no_grad()
def window_attention(branch: WindowPool, features: VisualFeatures) -> Tensor:
    """The weight of each patch within its window, mean over heads, `(B, N)`; each window sums to one."""
    parts, stride = branch.attention, branch.stride
    side = branch.grid // stride
    keys, _ = parts.keys_values(features.patches_BNC)
    keys_BhswtHd = keys.unflatten(-1, (parts.heads, -1)).unflatten(1, (side, stride, side, stride))
    queries_hwHd = parts.query_norm(branch.query_map(side)).view(side, side, parts.heads, -1)
    logits = torch.einsum("bhswtnd,hwnd->bhswtn", keys_BhswtHd, queries_hwHd).float() * parts.head_width**-0.5
    windows = logits.transpose(2, 3).flatten(3, 4).softmax(dim=3).mean(-1)
    return windows.unflatten(3, (stride, stride)).transpose(2, 3).flatten(1)


@torch.no_grad()
def resampler_attention(branch: Resampler, features: VisualFeatures) -> Tensor:
    """The attention that each patch gets, mean over queries and heads, `(B, N)`; sums to one."""
    parts = branch.attention
    keys, _ = parts.keys_values(features.patches_BNC, branch.position_NC if branch.positions else None)
    queries_MHd = parts.query_norm(branch.query_MC).unflatten(-1, (parts.heads, -1))
    logits = torch.einsum("mhd,bnhd->bhmn", queries_MHd, keys.unflatten(-1, (parts.heads, -1)))
    return (logits.float() * parts.head_width**-0.5).softmax(dim=-1).mean(dim=(1, 2))


def _inputs(model: Any, processor: Any, image: Image.Image, question: str) -> dict[str, Any]:
    """What the images' side of a model reads."""
    if (attached := compression_of(model)) is not None:
        pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels.to(model.device), **attached.ask(question)}
    batch = processor(images=[image], text=[processor.image_token], query=[question], return_tensors="pt")
    return take_image_inputs(batch.to(model.device))


@torch.no_grad()
def _watched(model: Any, inputs: dict[str, Any]) -> tuple[Projector, VisualFeatures, Query | None, CompressedTokens]:
    """Encode, and see what went into the projector and what came out."""
    attached = compression_of(model)
    projector = model.model.multi_modal_projector if attached is None else attached.projector
    if not isinstance(projector, Projector):
        raise ValueError("the model's projector is none of ours: load it with qmop.load, or attach a compressor")
    seen: list[tuple[Any, Any]] = []
    handle = projector.register_forward_hook(lambda _, given, made: seen.append((given, made)))
    try:
        model.model.get_image_features(**inputs)
    finally:
        handle.remove()
    if not seen:
        raise ValueError("the tokens of this picture came out of a cache: attach the compressor without one")
    given, made = seen[-1]
    return projector, given[0], given[1] if len(given) > 1 else None, made


@torch.no_grad()
def _kept_inside(model: Any, processor: Any, image: Image.Image, question: str, compressor: Any) -> Tensor:
    """What a method inside the language model keeps of a picture when the question is read, `(B, M)`."""
    templated = getattr(processor, "chat_template", None)
    text = prompt(processor, question) if templated else f"{processor.image_token}\n{question}"
    seen: list[Tensor] = []
    choose = compressor.select

    def watched(attention_BN: Tensor) -> Tensor:
        seen.append(choose(attention_BN))
        return seen[-1]

    compressor.select = watched
    try:
        model(**processor(images=[image], text=[text], return_tensors="pt").to(model.device, model.dtype))
    finally:
        del compressor.select
    every = torch.arange(compressor.grid**2).unsqueeze(0)
    return seen[-1] if seen else every  # a budget of all patches chooses nothing


def _branch(mixture: Mixture, name: str) -> Any:
    return mixture.branches[name]


def _kept(compressed: CompressedTokens, row: int, groups: Sequence[int] | None) -> set[int]:
    """Patches that are a token by themselves."""
    assert compressed.kept_BM is not None
    kept_M = compressed.kept_BM[row]
    if compressed.mask_BM is not None:
        kept_M = kept_M[compressed.mask_BM[row]]
    kept = {place for place in kept_M.tolist() if place >= 0}
    if groups is None:
        return kept
    sizes = Counter(groups)
    return {place for place in kept if sizes[groups[place]] == 1}


def _picture(pixels_CHW: Tensor, processor: Any) -> Image.Image:
    """Pixels as they were before normalisation."""
    source = processor.image_processor
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (source.image_mean, source.image_std))
    shown = (pixels_CHW.float().cpu() * deviation + mean).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(shown.permute(1, 2, 0).numpy())
