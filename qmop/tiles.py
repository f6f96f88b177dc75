"""Pictures of any size to tiles for a model, by an image processor that knows one size only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import make_flat_list_of_images

from qmop.features import Grid
from qmop.slicing import choose_grid, slice_picture, tile_count


@dataclass(frozen=True, kw_only=True)
class TiledPictures:
    """The tiles of some pictures, picture by picture.

    Attributes:
        pixels_BCHW: normalised tiles; of each picture row by row, its overview last.
        grids: rows and columns of each picture.
    """

    pixels_BCHW: Tensor
    grids: list[Grid]

    @property
    def overview_tiles(self) -> Tensor:
        """For each tile the place of its picture's overview (its only tile, where there is no other), `(B,)`."""
        counts = torch.tensor([tile_count(grid) for grid in self.grids])
        return (counts.cumsum(0) - 1).repeat_interleave(counts)


def pictures_of(overview_tiles: Tensor) -> Tensor:
    """How many tiles each picture has, from the place of each tile's overview."""
    return overview_tiles.unique_consecutive(return_counts=True)[1]


def tile_side(image_processor: Any) -> int:
    """Side of the square pictures that an image processor makes, in pixels.

    Raises:
        ValueError: if they are not square, or have no fixed size.
    """
    crops = getattr(image_processor, "do_center_crop", None) and image_processor.crop_size
    size = dict(crops or image_processor.size)
    height, width = size.get("height"), size.get("width")
    if height is None or height != width:
        raise ValueError(
            f"the image processor makes pictures of {size}, but tiles are squares of one size: "
            "give it a size or crop_size with equal height and width"
        )
    return int(height)


def tile_pictures(image_processor: Any, images: Any, max_tiles: int, **kwargs: Any) -> TiledPictures:
    """Cut pictures into tiles, at most `max_tiles` each beside the overview.

    Args:
        image_processor: of the vision tower; converts and normalises, but neither resizes, crops nor pads here.
        images: whatever image processors take.
        max_tiles: see `qmop.slicing.candidate_grids`.
        kwargs: for the image processor.
    """
    side, tiles, grids = tile_side(image_processor), [], []
    whole = {**kwargs, "do_resize": False, "do_center_crop": False, "do_pad": False, "return_tensors": "pt"}
    for image in make_flat_list_of_images(images):
        pixels_CHW = image_processor(image, **whole)["pixel_values"][0]
        grids.append(grid := choose_grid(*pixels_CHW.shape[-2:], tile=side, max_tiles=max_tiles))
        tiles.append(slice_picture(pixels_CHW, tile=side, grid=grid))
    return TiledPictures(pixels_BCHW=torch.cat(tiles), grids=grids)
