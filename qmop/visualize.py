"""What a method did to a picture, drawn over it: kept and merged patches, scores, attention, branch weights.

The picture that is shown is what the vision tower saw, cropped and resized. Only Pillow is needed.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from qmop.attachment import compression_of
from qmop.compressors.base import Compressor
from qmop.compressors.mixture import BRANCHES, Mixture
from qmop.compressors.projector import Projector
from qmop.compressors.prune import Prune
from qmop.compressors.resampler import Resampler
from qmop.compressors.window_pool import WindowPool
from qmop.features import CompressedTokens, Grid, Query, VisualFeatures
from qmop.fitting import take_image_inputs

SIDE, GAP, LINE = 264, 12, 20
"""Width of a panel, space between panels and height of a line of text, in pixels."""

INK, PAPER, BAR = (32, 32, 36), (255, 255, 255), (43, 123, 186)
_DARKENED = 0.25
_HEAT = ((12, 8, 60), (110, 25, 120), (200, 60, 80), (245, 140, 40), (250, 250, 160))
_HEAT_SHARE, _TINT_SHARE = 0.65, 0.5
_GOLDEN = 0.618034


def explain(model: Any, processor: Any, image: Image.Image, question: str) -> Image.Image:
    """Everything that can be shown about one picture and one question; a row of panels per tile of the picture.

    Args:
        model: ours, or a stock LLaVA with a compressor attached.
        processor: the model's.
        image: the picture.
        question: what is asked about it.

    Raises:
        ValueError: if the model's projector is none of ours.
    """
    inputs = _inputs(model, processor, image, question)
    projector, features, query, compressed = _watched(model, inputs)
    compressor = projector.compressor
    if isinstance(compressor, Mixture) and compressed.kept_BM is None and query is not None:
        compressed.kept_BM = _branch(compressor, "prune")(features, query).kept_BM
    heat, grid = heat_maps(compressor, features, query), features.grid or (compressor.grid, compressor.grid)
    pixels = inputs["pixel_values"].flatten(0, -4)
    rows = [
        draw(_picture(pixels[row], processor), compressed, grid, row=row, heat={k: v[row] for k, v in heat.items()})
        for row in range(len(pixels))
    ]
    head = f"{projector.declaration.name}, {int(compressed.counts_B[0])} tokens: {question}"
    return _stacked([_side_by_side([_text(head, rows[0].width - 2 * GAP)]), *rows])


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
    image = _to_grid(image, grid)
    panels = [_titled("picture", image)]
    groups = None if compressed.groups_BN is None else compressed.groups_BN[row].tolist()
    if compressed.kept_BM is not None:
        kept = _kept(compressed, row, groups)
        who = "kept" if compressed.branch_weights_BS is None else "prune keeps"
        panels.append(_titled(f"{who}: {len(kept)} of {grid[0] * grid[1]}", _darken_others(image, grid, kept)))
    if groups is not None:
        panels.append(_titled("merged: one colour, one token", _groups(image, grid, groups)))
    for title, values_N in (heat or {}).items():
        low, high = float(values_N.min()), float(values_N.max())
        panels.append(_titled(f"{title}, {low:.3g} to {high:.3g}", _heat(image, grid, values_N)))
    if compressed.branch_weights_BS is not None:
        panels.append(_titled("branch weights", _bars(branches, compressed.branch_weights_BS[row].tolist(), image)))
    return _side_by_side(panels)


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


def _to_grid(image: Image.Image, grid: Grid) -> Image.Image:
    """The picture at a size that whole cells fill."""
    cell = max(1, SIDE // max(grid))
    return image.convert("RGB").resize((grid[1] * cell, grid[0] * cell), Image.Resampling.BICUBIC)


def _cells(image: Image.Image, grid: Grid, values: Sequence[Any], mode: str = "RGB") -> Image.Image:
    """One value per patch, at the picture's size."""
    if len(values) != grid[0] * grid[1]:
        raise ValueError(f"there are {len(values)} numbers for a {grid[0]} x {grid[1]} grid: pass one per patch")
    flat = Image.new(mode, (grid[1], grid[0]))
    flat.putdata(list(values))
    return flat.resize(image.size, Image.Resampling.NEAREST)


def _mask(image: Image.Image, grid: Grid, shares: Sequence[float]) -> Image.Image:
    return _cells(image, grid, [round(255 * share) for share in shares], "L")


def _darken_others(image: Image.Image, grid: Grid, kept: set[int]) -> Image.Image:
    mask = _mask(image, grid, [1.0 if place in kept else _DARKENED for place in range(grid[0] * grid[1])])
    return Image.composite(image, Image.new("RGB", image.size), mask)


def _groups(image: Image.Image, grid: Grid, groups: Sequence[int]) -> Image.Image:
    """A colour for each token of several patches; tokens of one patch stay clear, patches of no token go dark."""
    sizes = Counter(groups)
    shares = [_DARKENED if g < 0 else 1.0 if sizes[g] == 1 else _TINT_SHARE for g in groups]
    tints = [(0, 0, 0) if g < 0 else _colour(g) for g in groups]
    tinted = Image.composite(image, _cells(image, grid, tints), _mask(image, grid, shares))
    _borders(tinted, grid, groups)
    return tinted


def _colour(number: int) -> tuple[int, int, int]:
    """Neighbouring numbers get colours far apart."""
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.85, 1.0 - 0.35 * (number % 3) / 2)
    return round(255 * red), round(255 * green), round(255 * blue)


def _borders(image: Image.Image, grid: Grid, groups: Sequence[int]) -> None:
    """White lines where two patches side by side went different ways."""
    pen, (high, wide), cell = ImageDraw.Draw(image), grid, image.width // grid[1]
    for place, group in enumerate(groups):
        y, x = divmod(place, wide)
        if x + 1 < wide and groups[place + 1] != group:
            pen.line([((x + 1) * cell, y * cell), ((x + 1) * cell, (y + 1) * cell)], fill=PAPER)
        if y + 1 < high and groups[place + wide] != group:
            pen.line([(x * cell, (y + 1) * cell), ((x + 1) * cell, (y + 1) * cell)], fill=PAPER)


def _heat(image: Image.Image, grid: Grid, values_N: Tensor) -> Image.Image:
    """Dark for the least number, bright for the greatest, over the picture in grey."""
    values = values_N.float().cpu()
    span = float(values.max() - values.min())
    shares = ((values - values.min()) / span if span > 0 else torch.zeros_like(values)).tolist()
    grey = image.convert("L").convert("RGB")
    return Image.blend(grey, _cells(image, grid, [_warmth(share) for share in shares]), _HEAT_SHARE)


def _warmth(share: float) -> tuple[int, int, int]:
    """A colour between the stops of the scale."""
    place = min(int(share * (len(_HEAT) - 1)), len(_HEAT) - 2)
    rest = share * (len(_HEAT) - 1) - place
    red, green, blue = (round(a + (b - a) * rest) for a, b in zip(_HEAT[place], _HEAT[place + 1], strict=True))
    return red, green, blue


def _bars(names: Sequence[str], weights: Sequence[float], like: Image.Image) -> Image.Image:
    """One bar per branch; a branch that did not run has none."""
    panel = Image.new("RGB", like.size, PAPER)
    pen = ImageDraw.Draw(panel)
    for place, (name, weight) in enumerate(zip(names, weights, strict=True)):
        top = GAP + place * 3 * LINE
        pen.text((0, top), f"{name}: {weight:.2f}" if weight > 0 else f"{name}: not run", fill=INK, font=_font())
        pen.rectangle([0, top + LINE, like.width - 1, top + 2 * LINE], outline=INK)
        if weight > 0:
            pen.rectangle([0, top + LINE, round(weight * (like.width - 1)), top + 2 * LINE], fill=BAR, outline=INK)
    return panel


def _titled(title: str, panel: Image.Image) -> Image.Image:
    return _stacked([_text(title, panel.width), panel])


def _text(line: str, width: int) -> Image.Image:
    """One line of text, cut where it would not fit."""
    strip = Image.new("RGB", (width, LINE), PAPER)
    font, shown = _font(), line
    while shown and font.getlength(shown) > width:
        shown = shown.removesuffix("…")[:-1].rstrip() + "…" if shown != "…" else ""
    ImageDraw.Draw(strip).text((0, 2), shown, fill=INK, font=font)
    return strip


def _font() -> Any:
    return ImageFont.load_default(size=LINE - 7)


def _side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (sum(p.width for p in panels) + GAP * (len(panels) + 1), panels[0].height + GAP), PAPER)
    left = GAP
    for panel in panels:
        whole.paste(panel, (left, 0))
        left += panel.width + GAP
    return whole


def _stacked(strips: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), PAPER)
    top = 0
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height
    return whole
