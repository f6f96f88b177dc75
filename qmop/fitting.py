"""Prompts made to fit what a method kept, for `forward` and `generate` of any LLaVA-shaped model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from qmop.continuing import asked_setting, cached_columns, mark_shorter, require_no_gaps, unread
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


def fit_words(
    config: Any, words: dict[str, Any], compressed: CompressedTokens, *, positions: bool, most: int | None = None
) -> dict[str, Any]:
    """Inputs of the language model without the placeholders that no token will fill.

    Args:
        config: the model's configuration.
        words: `input_ids` and, where given, `attention_mask` and `labels`; other entries pass through.
        compressed: what the method kept of the images of these rows.
        positions: also set `position_ids` where rows have changed.
        most: placeholders per image that the model's processor writes; any number will do when absent.

    Raises:
        ValueError: if the placeholders do not suit the images, see `qmop.placeholders.surplus`.
    """
    ids = words["input_ids"]
    if most is not None:
        most = max(most, compressed.tokens_BMC.shape[1])  # a budget of this call may be larger than the built one
    dropped = surplus(ids, config.image_token_id, compressed.counts_B.to(ids.device), most=most)
    if not dropped.any():
        return words
    prompt = drop(ids, words.get("attention_mask"), dropped, pad=pad_id(config), labels=words.get("labels"))
    fitted = {**words, "input_ids": prompt.input_ids, "attention_mask": prompt.attention_mask}
    if prompt.labels is not None:
        fitted["labels"] = prompt.labels
    if positions:
        fitted["position_ids"] = prompt.position_ids
    return fitted


def fit_pass(config: Any, words: dict[str, Any], images: dict[str, Any], *, most: int) -> dict[str, Any]:
    """What a pass of the language model is given: prompts without spare placeholders, and the images that they hold.

    Args:
        config: the model's configuration.
        words: everything that `forward` was given but the images; `input_ids` among it.
        images: encoded images as `mm_encoder_outputs`, under "image".
        most: placeholders per image that the model's processor writes.

    Raises:
        ValueError: as `fit_words`.
    """
    ids, compressed = words["input_ids"], getattr(images["image"], "compressed", None)
    if cached_columns(words.get("past_key_values")) and not (ids == config.image_token_id).any():
        return words  # the cache holds them
    if compressed is not None:
        words = fit_words(config, words, compressed, positions=True, most=most)
    return {**words, "mm_encoder_outputs": {**images, "image": _bare(images["image"])}}


@torch.no_grad()
def generate_fitted(
    generate: Callable[..., Any],
    encode: Callable[..., Any],
    model: Any,
    input_ids: Tensor | None,
    kwargs: dict[str, Any],
    *,
    most: int,
) -> Any:
    """Stock `generate` over prompts fitted to the kept tokens; the rows come back as they were, continued.

    Args:
        generate: the model's stock method.
        encode: its `get_image_features`, whose result carries `compressed`.
        model: the model, for its `config` and `generation_config`.
        input_ids: `(R, L)`, or None where they stand in `kwargs`.
        kwargs: everything else that the caller passed.
        most: placeholders per image that the model's processor writes.

    Raises:
        ValueError: as `fit_words`; if shortened rows have gaps where they go on from a cache.
    """
    ids = kwargs.pop("input_ids", input_ids)
    asked = take_image_inputs(kwargs)
    encoded = dict(kwargs.pop("mm_encoder_outputs", None) or {})
    if asked.get("pixel_values") is not None:
        encoded["image"] = encode(**asked)
    images = encoded.get("image")
    if images is None or ids is None:
        return generate(ids, **({"mm_encoder_outputs": encoded} if encoded else {}), **kwargs)
    words = {"input_ids": ids, "attention_mask": kwargs.pop("attention_mask", None)}
    compressed = getattr(images, "compressed", None)
    fitted = words if compressed is None else fit_words(model.config, words, compressed, positions=False, most=most)
    _leave_out_read(model.config, encoded, fitted, kwargs.get("past_key_values"))
    if fitted is not words:
        if cached_columns(kwargs.get("past_key_values")):
            require_no_gaps(words["attention_mask"])
        kwargs.pop("position_ids", None)  # counted anew over what is left of the prompts
        _lower_limits(kwargs, model.generation_config, ids.shape[1] - fitted["input_ids"].shape[1])
    if fitted["attention_mask"] is None:
        del fitted["attention_mask"]
    produced = generate(**({"mm_encoder_outputs": encoded} if encoded else {}), **fitted, **kwargs)
    return produced if fitted is words else _restored(produced, ids, fitted["input_ids"], kwargs)


def _bare(images: Any) -> BaseModelOutputWithPooling:
    """The tokens alone, for prompts that are fitted to them; beam search rewrites the object, so it gets its own."""
    return BaseModelOutputWithPooling(pooler_output=list(images.pooler_output))


def _leave_out_read(config: Any, encoded: dict[str, Any], fitted: dict[str, Any], cache: Any) -> None:
    """Of the encoded images leave what a cache does not hold; rows that begin behind the cache hold nothing of it."""
    images, ids, mask = _bare(encoded.pop("image")), fitted["input_ids"], fitted["attention_mask"]
    columns = cached_columns(cache) if mask is None or mask.shape[1] == ids.shape[1] else 0
    images.pooler_output = unread(images.pooler_output, ids == config.image_token_id, columns)
    if images.pooler_output:
        encoded["image"] = images


def _lower_limits(kwargs: dict[str, Any], defaults: Any, shorter: int) -> None:
    """Lengths that count the prompt are meant of the caller's rows; the settings objects stay as they are."""
    settings = copy.deepcopy(kwargs.get("generation_config"))
    for limit, instead in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        asked = asked_setting(kwargs, defaults, limit)
        if not isinstance(asked, int) or asked_setting(kwargs, defaults, instead) is not None:
            continue
        if settings is None or limit in kwargs:
            kwargs[limit] = max(asked - shorter, 0)
        else:
            setattr(settings, limit, max(asked - shorter, 0))
    if settings is not None:
        kwargs["generation_config"] = settings


def _restored(produced: Any, ids: Tensor, fitted: Tensor, kwargs: dict[str, Any]) -> Any:
    """What was generated behind the rows that the caller passed in; caches tell that theirs are shorter."""
    mark_shorter([kwargs.get("past_key_values"), getattr(produced, "past_key_values", None)])
    sequences = produced if isinstance(produced, Tensor) else produced.sequences
    copies = len(sequences) // len(ids)
    whole = torch.cat([ids.repeat_interleave(copies, dim=0), sequences[:, fitted.shape[1] :]], dim=1)
    if isinstance(produced, Tensor):
        return whole
    produced.sequences = whole
    return produced
