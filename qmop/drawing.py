"""Panels of numbers about the patches of a picture."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from qmop.features import Grid

SIDE, GAP, LINE = 264, 12, 20
"""Width of a panel, space between panels and height of a line of text, in pixels."""

INK, PAPER, BAR = (32, 32, 36), (255, 255, 255), (43, 123, 186)
_DARKENED = 0.25
_HEAT = ((12, 8, 60), (110, 25, 120), (200, 60, 80), (245, 140, 40), (250, 250, 160))
_HEAT_SHARE, _TINT_SHARE = 0.65, 0.5
_GOLDEN = 0.618034


def to_grid(image: Image.Image, grid: Grid) -> Image.Image:
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


def darken_others(image: Image.Image, grid: Grid, kept: set[int]) -> Image.Image:
    """The picture with every patch dark that was not kept."""
    mask = _mask(image, grid, [1.0 if place in kept else _DARKENED for place in range(grid[0] * grid[1])])
    return Image.composite(image, Image.new("RGB", image.size), mask)


def tint_groups(image: Image.Image, grid: Grid, groups: Sequence[int]) -> Image.Image:
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


def heat_over(image: Image.Image, grid: Grid, values_N: Tensor) -> Image.Image:
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


def weight_bars(names: Sequence[str], weights: Sequence[float], like: Image.Image) -> Image.Image:
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


def titled(title: str, panel: Image.Image) -> Image.Image:
    """A panel under its title."""
    return stacked([text_line(title, panel.width), panel])


def text_line(line: str, width: int) -> Image.Image:
    """One line of text, cut where it would not fit."""
    strip = Image.new("RGB", (width, LINE), PAPER)
    font, shown = _font(), line
    while shown and font.getlength(shown) > width:
        shown = shown.removesuffix("…")[:-1].rstrip() + "…" if shown != "…" else ""
    ImageDraw.Draw(strip).text((0, 2), shown, fill=INK, font=font)
    return strip


def _font() -> Any:
    return ImageFont.load_default(size=LINE - 7)


def side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    """Panels of one height in a row, with space around them."""
    whole = Image.new("RGB", (sum(p.width for p in panels) + GAP * (len(panels) + 1), panels[0].height + GAP), PAPER)
    left = GAP
    for panel in panels:
        whole.paste(panel, (left, 0))
        left += panel.width + GAP
    return whole


def stacked(strips: Sequence[Image.Image]) -> Image.Image:
    """Strips below each other, left-aligned."""
    whole = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), PAPER)
    top = 0
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height
    return whole
