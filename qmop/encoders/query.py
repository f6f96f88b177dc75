"""The question's side: the text tower paired with the vision tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, SiglipTextModel

from qmop.features import Query

PAIRED = {"clip_text_model": "clip_vision_model", "siglip_text_model": "siglip_vision_model"}
"""Families of text towers that can be read, and the vision towers whose pictures they were trained to meet."""

LEGACY_END = 2


class QueryEncoder(nn.Module):
    """The text tower paired with the vision tower, and the map of patches into its space. Frozen in training.

    SigLIP's tower was trained on questions padded to its full length with the padding attended to, and its end
    feature is the state at the last of these positions; so that is what it is shown, whatever the batch. Its text
    space is that of the vision tower's pooling head, so there is no projection of patches.

    Args:
        query_config: of a CLIP or SigLIP text tower.
        vision_config: of the paired vision tower.

    Raises:
        ValueError: if the text tower is of a family that cannot be read, or not of the vision tower's.
    """

    def __init__(self, query_config: Any, vision_config: Any) -> None:
        super().__init__()
        self.family: str = query_config.model_type
        if self.family not in PAIRED:
            raise ValueError(f"the text tower is a {self.family}, but only {' and '.join(PAIRED)} can be read")
        self.require_pair(vision_config.model_type)
        self.padded = self.family == "siglip_text_model"
        self.visual_projection: nn.Linear | None = None
        if self.padded:
            self.text_tower: Any = SiglipTextModel(query_config)
        else:
            self.text_tower = CLIPTextModelWithProjection(query_config)
            self.visual_projection = nn.Linear(vision_config.hidden_size, query_config.projection_dim, bias=False)

    def require_pair(self, vision: str) -> None:
        """Refuse a vision tower of the other family, whose patches have no place in this text space.

        Raises:
            ValueError: naming both and the tower that would do.
        """
        if (paired := PAIRED[self.family]) != vision:
            raise ValueError(
                f"the text tower is a {self.family}, but the vision tower is a {vision}: take the text tower of the "
                f"vision tower's own checkpoint, or a {paired}"
            )

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, last: bool = False) -> Query:
        """Questions to end-token features, one row each.

        Args:
            input_ids: `(R, T)`, or `(R, G, T)` for questions cut into G segments that the tower can hold.
            attention_mask: of the same shape; a segment of zeros is absent.
            last: also compute the state at the last position of the padded question.
        """
        if input_ids.dim() == 3:  # noqa: PLR2004 - rows, segments, positions
            return self._segments(input_ids, attention_mask, last=last)
        eos, text = self._encode(input_ids, attention_mask)
        return Query(text_BE=text, eos_BC=eos, last_BE=self._last(input_ids, attention_mask) if last else None)

    def _encode(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """End-token features of R questions, before and after the projection."""
        if self.padded:
            output = self.text_tower(input_ids=self._full(ids, mask, self.text_tower.config.pad_token_id))
            return output.last_hidden_state[:, -1], output.pooler_output
        eos = self.text_tower.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return eos, self.text_tower.text_projection(eos)

    def _segments(self, ids: Tensor, mask: Tensor | None, *, last: bool) -> Query:
        """The mean of the present segments' unit vectors; the last position is that of the first, as if truncated."""
        mask = torch.ones_like(ids) if mask is None else mask
        absent = ~mask.any(dim=-1)
        seen = mask.masked_fill(absent.unsqueeze(-1), 1)  # a row that attends to nothing would be undefined
        eos, text = self._encode(ids.flatten(0, 1), seen.flatten(0, 1))
        present = (~absent).to(text.dtype)
        share = (present / present.sum(dim=1, keepdim=True).clamp(min=1)).unsqueeze(-1)
        eos, unit = (value.unflatten(0, ids.shape[:2]) for value in (eos, F.normalize(text, dim=-1)))
        final = self._last(ids[:, 0], seen[:, 0]) if last else None
        return Query(text_BE=(share * unit).sum(1), eos_BC=(share * eos).sum(1), last_BE=final)

    def _last(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The projected last position of the question padded to the tower's full length, padding attended to."""
        if self.padded:
            return self._encode(ids, mask)[1]
        end = self.text_tower.config.eos_token_id
        # Configurations older than transformers 4.31 say 2, whatever the vocabulary; the end token has the largest id.
        fill = ids.amax(dim=1, keepdim=True) if end == LEGACY_END else end
        states = self.text_tower.text_model(input_ids=self._full(ids, mask, fill)).last_hidden_state
        return self.text_tower.text_projection(states[:, -1])

    def _full(self, ids: Tensor, mask: Tensor | None, fill: Tensor | int) -> Tensor:
        """Questions padded on the right to the tower's full length with one id, or with one for each."""
        ids = ids if mask is None else torch.where(mask.bool(), ids, fill)
        missing = max(0, self.text_tower.config.max_position_embeddings - ids.shape[1])
        padding = ids.new_zeros(len(ids), missing) + fill
        return torch.cat([ids, padding], dim=1)
