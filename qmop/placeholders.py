"""Placeholders in a prompt against the tokens that a method really kept.

A processor writes a fixed number of placeholders per image before the model has seen any. Where a method keeps
fewer, the surplus is dropped from ids, mask, positions and labels, and the rows are padded on the left again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100
"""Label of a token that is no target."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Rows of a batch as the language model reads them.

    Attributes:
        input_ids: `(R, L)`.
        attention_mask: `(R, L)`, one where a token is real.
        position_ids: `(R, L)`, counted over real tokens only.
        labels: `(R, L)`, where there were any.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor | None = None


def surplus(input_ids: Tensor, image_token: int, counts_B: Tensor, *, most: int | None = None) -> Tensor:
    """True at placeholders beyond what their image needs, `(R, L)`.

    Every image must have the same number of placeholders, in the order of the images; or prompts have been fitted
    before, and nothing is left to drop.

    Args:
        input_ids: `(R, L)`.
        image_token: id of the placeholder.
        counts_B: tokens kept of each image.
        most: placeholders per image that the model's processor writes; any number will do when absent.

    Raises:
        ValueError: if the placeholders do not divide evenly into the images, are too few, or more than `most`.
    """
    is_image = input_ids == image_token
    total, images = int(is_image.sum()), len(counts_B)
    if images and total == int(counts_B.sum()):
        return torch.zeros_like(is_image)
    if not images or total % images:
        raise ValueError(
            f"the prompts have {total} image placeholders for {images} images: let the processor write the prompts, "
            "with one image placeholder per picture"
        )
    each = total // images
    if each < (kept := int(counts_B.max())):
        raise ValueError(
            f"the prompts have {each} placeholders per image, but the model keeps {kept} tokens: "
            "use the processor that was saved with the model"
        )
    if most is not None and each > most:
        raise ValueError(
            f"the prompts have {each} placeholders per image, but the model keeps at most {most} tokens: use the "
            "processor that was saved with the model, and pass every picture of the prompts"
        )
    place = (is_image.flatten().cumsum(0) - 1).view_as(input_ids).clamp(min=0)
    return is_image & (place % each >= counts_B[place // each])


def drop(
    input_ids: Tensor, attention_mask: Tensor | None, dropped: Tensor, *, pad: int, labels: Tensor | None = None
) -> Prompt:
    """Rows without the dropped places, padded on the left to the longest that remains.

    Args:
        input_ids: `(R, L)`.
        attention_mask: `(R, L)`; all real when absent.
        dropped: `(R, L)`, true where a token goes.
        pad: id to pad with; must not be the placeholder.
        labels: `(R, L)`.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    real = mask.bool() & ~dropped
    length = int(real.sum(dim=1).max())
    order = real.int().argsort(dim=1, stable=True)[:, -length:]  # what stays moves right, in its own order
    real = real.gather(1, order)
    ids = input_ids.gather(1, order).masked_fill(~real, pad)
    return Prompt(
        input_ids=ids,
        attention_mask=real.to(mask.dtype),
        position_ids=(real.cumsum(dim=1) - 1).clamp(min=0),
        labels=None if labels is None else labels.gather(1, order).masked_fill(~real, IGNORED),
    )
