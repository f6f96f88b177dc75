"""What the last token of a prompt attends to in one layer of a language model, recomputed row by row.

Shape legend beside that of `features.py`: R prompt rows, L columns of this pass, P columns of earlier passes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import rotate_half

from qmop.placeholders import IGNORED


def visible(attention_mask: Any, length: int, rows: int) -> Tensor | None:
    """Which columns are real, `(rows, length)`, read off the mask that a layer gets; None if all are.

    Raises:
        ValueError: if the attention kernel's mask cannot be read.
    """
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor):
        raise ValueError(
            "the attention kernel's mask cannot be read by a method inside the language model: "
            "load the model with attn_implementation='sdpa'"
        )
    if attention_mask.dim() == 2:  # noqa: PLR2004 - rows and columns
        return attention_mask[:, :length].bool()
    last = attention_mask[:, 0, -1, :length]  # the last query sees every real column
    real = last if last.dtype == torch.bool else last > torch.finfo(last.dtype).min / 2
    return real.expand(rows, -1)


def judges(visual_RL: Tensor, seen: Tensor | None, labels_RL: Tensor | None = None) -> Tensor:
    """The column of each row whose attention decides, `(R,)`: the last of the prompt.

    That is the last real column; or, where labels tell the answer, the one before the first target behind the row's
    visual tokens.

    Args:
        visual_RL: true at visual tokens.
        seen: `(R, P + L)`, true at real columns; all are when absent.
        labels_RL: targets.
    """
    column_L = torch.arange(visual_RL.shape[1], device=visual_RL.device)
    real_RL = torch.ones_like(visual_RL) if seen is None else seen[:, -len(column_L) :]
    last_R = (real_RL * column_L).amax(dim=1)
    if labels_RL is None:
        return last_R
    behind_RL = column_L > (visual_RL * column_L).amax(dim=1, keepdim=True)
    target_RL = (labels_RL.to(visual_RL.device) != IGNORED) & behind_RL
    return torch.where(target_RL.any(dim=1), target_RL.int().argmax(dim=1) - 1, last_R)


def judge_attention(
    layer: Any, states_RLD: Tensor, kwargs: dict[str, Any], judge_R: Tensor, *, seen: Tensor | None, past: int
) -> Tensor:
    """One row of a layer's attention, mean over heads, to the columns of this pass, `(R, L)` in single precision.

    Only the key projection is computed a second time, and one query per row.

    Args:
        layer: a decoder layer of a family with rotary embeddings and grouped heads.
        states_RLD: what enters it.
        kwargs: what else it was given.
        judge_R: the column that asks.
        seen: `(R, P + L)`, true at real columns; all are when absent.
        past: P, columns in the layer's cache.
    """
    attention, entering = layer.self_attn, layer.input_layernorm(states_RLD)
    row_R, head = torch.arange(len(judge_R), device=judge_R.device), attention.head_dim
    cos, sin = (part.expand(len(row_R), -1, -1).unsqueeze(1) for part in kwargs["position_embeddings"])
    key = _rotated(attention.k_proj(entering).unflatten(-1, (-1, head)).transpose(1, 2), cos, sin)
    if past:
        key = torch.cat([kwargs["past_key_values"].layers[attention.layer_idx].keys, key], dim=2)
    query = attention.q_proj(entering[row_R, judge_R]).unflatten(-1, (-1, head))
    query = _rotated(query, cos[row_R, :, judge_R], sin[row_R, :, judge_R])
    grouped = query.unflatten(1, (key.shape[1], -1))
    logits = torch.einsum("rkgd,rkld->rkgl", grouped, key).float() * attention.scaling
    allowed = torch.arange(key.shape[2], device=row_R.device) <= (past + judge_R).unsqueeze(1)
    allowed = allowed if seen is None else allowed & seen
    logits = logits.masked_fill(~allowed[:, None, None, :], torch.finfo(logits.dtype).min)
    return logits.softmax(dim=-1).mean(dim=(1, 2))[:, past:]


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embeddings applied."""
    return states * cos + rotate_half(states) * sin
