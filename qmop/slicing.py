"""TokenPacker-HD: a large picture cut into tiles of the tower's size (arXiv 2407.02392, Sec. 3.3).

The picture is fitted into the grid of tiles that suits its shape best, each tile is encoded and compressed like a
picture of its own, and the prompt tells them apart by ordinary text: a comma between the tiles of a row, a line break
behind it. Behind the last row stands the overview, the whole picture in one tile, and a line break.

Letters here: T tiles of a picture, overview last; H x W pixels; everything else as in `qmop.features`.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from qmop.features import Grid

LONGEST_STRIP = 9
"""The published tables of grids for 9, 16 and 25 tiles end their single rows and columns here."""

OVERLAP_SCALE = 1.4
OVERLAP_WEIGHT = 0.1


@cache
def candidate_grids(max_tiles: int) -> tuple[Grid, ...]:
    """Rows and columns of every grid that a picture may be cut into, fewest tiles first.

    All pairs with a product of at most `max_tiles`, but single rows and columns of at most nine tiles: the 23, 36
    and 55 different grids of the published tables for 9, 16 and 25 tiles, and a rule for any other number.

    Args:
        max_tiles: most tiles of a picture, the overview not counted.

    Raises:
        ValueError: if no tile is allowed.
    """
    if max_tiles < 1:
        raise ValueError(f"max_tiles is {max_tiles}, but a picture has one tile at least: choose 1 or more")
    sides = range(1, max_tiles + 1)
    grids = [(rows, columns) for rows in sides for columns in range(1, max_tiles // rows + 1)]
    fitting = [grid for grid in grids if min(grid) > 1 or max(grid) <= LONGEST_STRIP]
    return tuple(sorted(fitting, key=lambda grid: (grid[0] * grid[1], grid)))


def choose_grid(
    height: int,
    width: int,
    *,
    tile: int = 336,
    max_tiles: int = 9,
    scale: float = OVERLAP_SCALE,
    weight: float = OVERLAP_WEIGHT,
) -> Grid:
    """Rows and columns of the grid that suits a picture best; of equals the one of fewer tiles.

    The score is the share of the grid that the fitted picture covers, plus `weight` times the overlap (intersection
    over union) of grid and picture, both laid at the origin at their own sizes.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        tile: side of a tile, in pixels.
        max_tiles: most tiles, see `candidate_grids`.
        scale: the picture's sides are taken this many times as long in the overlap (in the published code only; 1 is
            the paper), which leans towards more tiles.
        weight: of the overlap.

    Raises:
        ValueError: if the picture is empty or no tile is allowed.
    """
    if min(height, width) < 1:
        raise ValueError(f"the picture is {height} x {width} pixels, but tiles need at least one: leave it out")

    def score(grid: Grid) -> float:
        canvas = (grid[0] * tile, grid[1] * tile)
        area = canvas[0] * canvas[1]
        fitted = fit(height, width, *canvas)
        box = (height * scale, width * scale)
        common = min(canvas[0], box[0]) * min(canvas[1], box[1])
        return fitted[0] * fitted[1] / area + weight * common / (area + box[0] * box[1] - common)

    return max(candidate_grids(max_tiles), key=score)


def fit(height: int, width: int, most_height: int, most_width: int) -> Grid:
    """The largest size of a picture's own proportions that fits, at least one pixel each way."""
    ratio = min(most_height / height, most_width / width)
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def slice_picture(
    pixels_CHW: Tensor, *, tile: int = 336, max_tiles: int = 9, grid: Grid | None = None, official: bool = False
) -> Tensor:
    """Tiles row by row, then the overview where there is more than one tile, `(T, C, tile, tile)`.

    The picture is resized bilinearly to fit the grid and laid at the top left of a canvas of zeros, the mean colour.

    Args:
        pixels_CHW: normalised, floating point.
        tile: side of a tile, in pixels; the tower's own size.
        max_tiles: most tiles, see `candidate_grids`.
        grid: rows and columns, instead of those of `choose_grid`.
        official: make the overview out of the padded canvas, as the published code does, instead of out of the
            picture; the canvas's padding is then squeezed into the picture's place.

    Raises:
        ValueError: if the pixels are whole numbers or the picture is empty.
    """
    if not pixels_CHW.is_floating_point():
        raise ValueError(f"pixels are {pixels_CHW.dtype}, but zero must be the mean colour: normalise them first")
    height, width = pixels_CHW.shape[-2:]
    rows, columns = grid or choose_grid(height, width, tile=tile, max_tiles=max_tiles)
    canvas_CHW = _laid(pixels_CHW, fit(height, width, rows * tile, columns * tile), (rows * tile, columns * tile))
    tiles_TCHW = (
        canvas_CHW.unflatten(2, (columns, tile)).unflatten(1, (rows, tile)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    )
    if rows * columns == 1:
        return tiles_TCHW
    whole_CHW = canvas_CHW if official else pixels_CHW
    overview_CHW = _laid(whole_CHW, fit(height, width, tile, tile), (tile, tile))
    return torch.cat([tiles_TCHW, overview_CHW.unsqueeze(0)])


def _laid(pixels_CHW: Tensor, size: Grid, canvas: Grid) -> Tensor:
    """A picture resized and padded with zeros at the bottom and on the right."""
    resized_CHW = pixels_CHW
    if tuple(pixels_CHW.shape[-2:]) != size:
        resized_CHW = F.interpolate(pixels_CHW.unsqueeze(0), size=size, mode="bilinear", align_corners=False)[0]
    return F.pad(resized_CHW, (0, canvas[1] - size[1], 0, canvas[0] - size[0]))


def tile_count(grid: Grid) -> int:
    """Tiles of a picture, with its overview."""
    tiles = grid[0] * grid[1]
    return tiles + (tiles > 1)


def tile_layout(grid: Grid, tokens: int, image_token: str, *, column: str = ",", row: str = "\n") -> str:
    """A picture's part of the prompt, its tiles in the order of `slice_picture`.

    Args:
        grid: rows and columns.
        tokens: M, placeholders of each tile.
        image_token: the placeholder.
        column: text between the tiles of a row.
        row: text behind each row, and behind the overview.
    """
    tile = image_token * tokens
    rows = (column.join([tile] * grid[1]) + row) * grid[0]
    return rows + (tile + row if tile_count(grid) > 1 else "")


def token_count(grid: Grid, tokens: int) -> int:
    """Tokens of a picture in the prompt where each separator is one token: M for each tile, then the separators."""
    rows, columns = grid
    return tile_count(grid) * tokens + rows * (columns - 1) + rows + (rows * columns > 1)
