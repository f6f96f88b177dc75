"""The question's side: the text tower paired with the vision tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection

from qmop.features import Query


class QueryEncoder(nn.Module):
    """The text tower paired with the vision tower, and the map of patches into its space. Frozen in training."""

    def __init__(self, query_config: Any, vision_config: Any) -> None:
        super().__init__()
        self.text_tower = CLIPTextModelWithProjection(query_config)
        self.visual_projection = nn.Linear(vision_config.hidden_size, query_config.projection_dim, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, last: bool = False) -> Query:
        """Questions to end-token features, one row each.

        Args:
            input_ids: `(R, T)`, or `(R, G, T)` for questions cut into G segments that the tower can hold.
            attention_mask: of the same shape; a segment of zeros is absent.
            last: also compute the state at the last position of the padded question.
        """
        if input_ids.dim() == 3:  # noqa: PLR2004 - rows, segments, positions
            return self._segments(input_ids, attention_mask)
        eos, text = self._encode(input_ids, attention_mask)
        return Query(text_BE=text, eos_BC=eos, last_BE=self._last(input_ids, attention_mask) if last else None)

    def _encode(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        eos = self.text_tower.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return eos, self.text_tower.text_projection(eos)

    def _segments(self, ids: Tensor, mask: Tensor | None) -> Query:
        mask = torch.ones_like(ids) if mask is None else mask
        eos, text = self._encode(ids.flatten(0, 1), mask.flatten(0, 1))
        present = mask.any(dim=-1).to(text.dtype)
        share = (present / present.sum(dim=1, keepdim=True).clamp(min=1)).unsqueeze(-1)
        eos, unit = (value.unflatten(0, ids.shape[:2]) for value in (eos, F.normalize(text, dim=-1)))
        return Query(text_BE=(share * unit).sum(1), eos_BC=(share * eos).sum(1))

    def _last(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The projected last position of the question padded to the tower's full length, padding attended to."""
        config = self.text_tower.config
        end = config.pad_token_id if config.eos_token_id is None else config.eos_token_id
        ids = ids if mask is None else torch.where(mask.bool(), ids, end)
        ids = F.pad(ids, (0, config.max_position_embeddings - ids.shape[1]), value=end)
        return self.text_tower.text_projection(self.text_tower.text_model(input_ids=ids).last_hidden_state[:, -1])
