"""Prompts made to fit what a method kept, for `forward` and `generate` of any LLaVA-shaped model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from qmop.features import CompressedTokens
from qmop.placeholders import drop, surplus

IMAGE_INPUTS = (
    "pixel_values",
    "query_input_ids",
    "query_attention_mask",
    "image_rows",
    "visual_tokens",
    "language_query_ids",
    "language_query_mask",
    "overview_tiles",
)
"""What `get_image_features` takes out of a batch of the processor."""


def take_image_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Remove from a batch, and return, what the images' side of the model reads."""
    return {name: batch.pop(name) for name in IMAGE_INPUTS if name in batch}


def pad_id(config: Any) -> int:
    """An id to pad with that is not the image placeholder."""
    pad = config.text_config.pad_token_id
    return pad if pad is not None and 0 <= pad != config.image_token_id else int(config.image_token_id == 0)


def fit_words(config: Any, words: dict[str, Any], compressed: CompressedTokens, *, positions: bool) -> dict[str, Any]:
    """Inputs of the language model without the placeholders that no token will fill.

    Args:
        config: the model's configuration.
        words: `input_ids` and, where given, `attention_mask` and `labels`; other entries pass through.
        compressed: what the method kept of the images of these rows.
        positions: also set `position_ids` where rows have changed.
    """
    ids = words["input_ids"]
    dropped = surplus(ids, config.image_token_id, compressed.counts_B.to(ids.device))
    if not dropped.any():
        return words
    prompt = drop(ids, words.get("attention_mask"), dropped, pad=pad_id(config), labels=words.get("labels"))
    fitted = {**words, "input_ids": prompt.input_ids, "attention_mask": prompt.attention_mask}
    if prompt.labels is not None:
        fitted["labels"] = prompt.labels
    if positions:
        fitted["position_ids"] = prompt.position_ids
    return fitted


@torch.no_grad()
def generate_fitted(
    generate: Callable[..., Any],
    encode: Callable[..., Any],
    config: Any,
    input_ids: Tensor | None,
    kwargs: dict[str, Any],
) -> Any:
    """Stock `generate` over prompts fitted to the kept tokens; the rows come back as they were, continued.

    Args:
        generate: the model's stock method.
        encode: its `get_image_features`, whose result carries `compressed`.
        config: the model's configuration.
        input_ids: `(R, L)`, or None where they stand in `kwargs`.
        kwargs: everything else that the caller passed.
    """
    ids = kwargs.pop("input_ids", input_ids)
    asked = take_image_inputs(kwargs)
    encoded = dict(kwargs.pop("mm_encoder_outputs", None) or {})
    if asked.get("pixel_values") is not None:
        encoded["image"] = encode(**asked)
    images = encoded.get("image")
    if images is None or ids is None:
        return generate(ids, **({"mm_encoder_outputs": encoded} if encoded else {}), **kwargs)
    # Beam search rewrites the object that it is given, so it gets one of its own.
    encoded["image"] = BaseModelOutputWithPooling(pooler_output=list(images.pooler_output))
    words = {"input_ids": ids, "attention_mask": kwargs.pop("attention_mask", None)}
    compressed = getattr(images, "compressed", None)
    fitted = words if compressed is None else fit_words(config, words, compressed, positions=False)
    shorter = ids.shape[1] - fitted["input_ids"].shape[1]
    _lower_limits(kwargs, shorter)
    if fitted["attention_mask"] is None:
        del fitted["attention_mask"]
    return _restored(generate(mm_encoder_outputs=encoded, **fitted, **kwargs), ids, fitted["input_ids"])


def _lower_limits(kwargs: dict[str, Any], shorter: int) -> None:
    """Lengths that count the prompt are meant of the caller's rows; the settings object stays the caller's own."""
    settings = copy.deepcopy(kwargs.get("generation_config"))
    for limit in ("max_length", "min_length"):
        if isinstance(kwargs.get(limit), int):
            kwargs[limit] -= shorter
        if isinstance(getattr(settings, limit, None), int):
            setattr(settings, limit, getattr(settings, limit) - shorter)
    if settings is not None:
        kwargs["generation_config"] = settings


def _restored(produced: Any, ids: Tensor, fitted: Tensor) -> Any:
    """What was generated behind the rows that the caller passed in."""
    if fitted is ids:
        return produced
    sequences = produced if isinstance(produced, Tensor) else produced.sequences
    copies = len(sequences) // len(ids)
    whole = torch.cat([ids.repeat_interleave(copies, dim=0), sequences[:, fitted.shape[1] :]], dim=1)
    if isinstance(produced, Tensor):
        return whole
    produced.sequences = whole
    return produced
