"""Prompts that are read in several passes, where methods shorten them: caches that go on, and prompts in pieces.

Shape legend: R prompt rows, L columns of the prompts, m tokens of one picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

SHORTER = "qmop_shorter"
"""Attribute of a cache that was filled from shorter rows than the caller has; copies of the cache have it too."""


def cached_columns(cache: Any) -> int:
    """How many columns a cache holds."""
    return 0 if cache is None else int(cache.get_seq_length())


def mark_shorter(places: Iterable[Any]) -> None:
    """Remember of the caches among some values that their rows were shortened."""
    for place in places:
        if isinstance(place, Cache):
            setattr(place, SHORTER, True)


def require_pictures(config: Any, ids: Tensor | None, cache: Any, *, always: bool) -> None:
    """Refuse to go on, without pictures, from a cache that has fewer placeholders than the prompts.

    Args:
        config: the model's configuration.
        ids: `(R, L)`, of the prompts.
        cache: what was read before; nothing when absent.
        always: also where the cache does not tell that its rows were shortened.

    Raises:
        ValueError: if the prompts have placeholders.
    """
    if ids is None or not cached_columns(cache) or not (always or getattr(cache, SHORTER, False)):
        return
    if (ids == config.image_token_id).any():
        raise ValueError("past_key_values go on behind pictures that are not there: pass pixel_values again with them")


def require_no_gaps(attention_mask: Tensor | None) -> None:
    """Refuse rows whose columns cannot be matched with those of a cache once placeholders are dropped.

    Raises:
        ValueError: if padding stands behind a row's first token.
    """
    if attention_mask is not None and (attention_mask.int().diff(dim=1) < 0).any():
        raise ValueError(
            "attention_mask has zeros behind a row's first token, and rows that were shortened cannot go on from "
            "past_key_values there: go on with each row by itself, without the padding, or leave past_key_values out"
        )


def unread(tokens: Sequence[Tensor], visual_RL: Tensor, columns: int) -> list[Tensor]:
    """Of some pictures the tokens whose places a cache does not hold, `(m, D)` each; none of a picture that it holds.

    Args:
        tokens: of each picture, `(m, D)`.
        visual_RL: true at placeholders. Where there are more or fewer of them than tokens, the caller has left out
            what the cache holds, and all tokens are to be read.
        columns: how many the cache holds.
    """
    counts = [len(each) for each in tokens]
    if not columns or int(visual_RL.sum()) != sum(counts):
        return list(tokens)
    late_L = torch.arange(visual_RL.shape[1], device=visual_RL.device) >= columns
    late = late_L.expand_as(visual_RL)[visual_RL].split(counts)
    left = [each[places.to(each.device)] for each, places in zip(tokens, late, strict=True)]
    return [each for each in left if len(each)]


def asked_setting(kwargs: Mapping[str, Any], defaults: Any, name: str) -> Any:
    """A generation setting as stock `generate` finds it.

    Args:
        kwargs: of the call; a setting there goes before that of its `generation_config`.
        defaults: the model's own `generation_config`, for what the call leaves open.
        name: of the setting.
    """
    if name in kwargs:
        return kwargs[name]
    own = getattr(kwargs.get("generation_config"), name, None)
    return getattr(defaults, name, None) if own is None else own


def require_whole_prefill(kwargs: Mapping[str, Any], defaults: Any) -> None:
    """Refuse to see a prompt in pieces, of which none shows every picture to the prompt's last token.

    Args:
        kwargs: of `generate`.
        defaults: the model's own `generation_config`.

    Raises:
        ValueError: if `prefill_chunk_size` is set in the call, its configuration or the model's.
    """
    if (chunk := asked_setting(kwargs, defaults, "prefill_chunk_size")) is not None:
        raise ValueError(
            f"prefill_chunk_size is {chunk}, but a method inside the language model drops tokens in one pass: "
            "leave it out, or pass prefill_chunk_size=None where the model's generation_config sets it"
        )
