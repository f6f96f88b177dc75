"""The three types that every method speaks.

Shape legend, used as suffixes of tensor names throughout: B images, N patches, M kept tokens, C vision width,
D language width, E text-space width, T query length, S branches, R prompt rows.

They subclass transformers' `ModelOutput` because ZeRO-3 hooks walk through tensors, tuples and dicts only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

Grid = tuple[int, int]
"""Height and width of an image's patch grid."""


@dataclass
class VisualFeatures(ModelOutput):
    """What the vision tower offers; a field is present only if a method declared that it reads it.

    The images of a batch may be tiles of larger pictures; a method then treats each tile as an image.

    Attributes:
        patches_BNC: patch states of the selected layer, row-major over the grid.
        grid: (h, w) shared by the images of the batch; a plain tuple, so that reading it never waits for a device.
        levels_BNF: patch states of several layers side by side, low to high; F is their number times C.
        class_token_BC: the class token of the selected layer, for towers that have one.
        summary_BC: one vector per image: the class token, or what the tower's pooling head makes of the patches.
            For a tile, that of its whole picture.
        cls_attention_BN: attention mass from the class token (or the pooling head's probe) to each patch.
        keys_BNHd: keys of the block whose class attention is read, by head (H here counts heads, d their width).
        text_space_BNE: patches mapped into the paired text space, not normalised.
    """

    patches_BNC: Tensor
    grid: Grid | None = None
    levels_BNF: Tensor | None = None
    class_token_BC: Tensor | None = None
    summary_BC: Tensor | None = None
    cls_attention_BN: Tensor | None = None
    keys_BNHd: Tensor | None = None
    text_space_BNE: Tensor | None = None

    def rows(self, rows_B: Tensor) -> VisualFeatures:
        """The same features of some of the images, by index."""
        return VisualFeatures(**_select(self, rows_B))

    def with_patches(self, patches_BNC: Tensor) -> VisualFeatures:
        """The same features over other patches, such as connected ones."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return VisualFeatures(**{**values, "patches_BNC": patches_BNC})

    def need(self, field: str) -> Tensor:
        """A feature that a method cannot do without.

        Raises:
            ValueError: if the pass that made these features did not compute it.
        """
        value = getattr(self, field)
        if value is None:
            raise ValueError(f"features.{field} is missing: fill it in, or declare it so that the towers compute it")
        return value


@dataclass
class Query(ModelOutput):
    """The question, one row per image.

    Attributes:
        text_BE: end-token feature in the paired text space (after the text projection), not normalised. For a
            question of several segments, the mean of the segments' unit vectors.
        eos_BC: end-token feature before the projection.
        last_BE: the projected state at the last position of the padded question (published code of Recoverable
            Compression).
        language_BD: state of the question's last token in the language model's last layer (QueCC).
    """

    text_BE: Tensor
    eos_BC: Tensor | None = None
    last_BE: Tensor | None = None
    language_BD: Tensor | None = None

    def need(self, field: str) -> Tensor:
        """A feature of the question that a method cannot do without.

        Raises:
            ValueError: if it was not computed.
        """
        value = getattr(self, field)
        if value is None:
            raise ValueError(f"query.{field} is missing: fill it in, or declare it so that the towers compute it")
        return value

    def rows(self, rows_B: Tensor) -> Query:
        """The queries of some of the images, by index."""
        return Query(**_select(self, rows_B))


@dataclass
class CompressedTokens(ModelOutput):
    """What a method returns.

    Attributes:
        tokens_BMC: kept tokens; of width C out of a compressor and of width D out of a projector.
        mask_BM: true where a token is real; absent when every image has M tokens.
        kept_BM: patch index of each token, for methods that select; -1 where a token is no single patch.
        groups_BN: the token that each patch was merged into, -1 for patches left out; for methods that merge.
        branch_weights_BS: the weight of each branch after selection and renormalisation, for mixtures.
    """

    tokens_BMC: Tensor
    mask_BM: Tensor | None = None
    kept_BM: Tensor | None = None
    groups_BN: Tensor | None = None
    branch_weights_BS: Tensor | None = None

    @property
    def counts_B(self) -> Tensor:
        """Number of real tokens of each image, int64."""
        if self.mask_BM is not None:
            return self.mask_BM.sum(dim=1)
        batch, count = self.tokens_BMC.shape[:2]
        return torch.full((batch,), count, device=self.tokens_BMC.device)

    def per_image(self) -> list[Tensor]:
        """The real tokens of each image, each `(m, width)`."""
        if self.mask_BM is None:
            return list(self.tokens_BMC.unbind(0))
        return [tokens[mask] for tokens, mask in zip(self.tokens_BMC, self.mask_BM, strict=True)]


def _select(output: ModelOutput, rows_B: Tensor) -> dict[str, Any]:
    values = {field.name: getattr(output, field.name) for field in fields(output)}
    return {name: value[rows_B] if isinstance(value, Tensor) else value for name, value in values.items()}
