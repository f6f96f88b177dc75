"""Training-free methods attached to a stock LLaVA: one instance, no class is touched, and it can be undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from qmop.attachment import Compression, compression_of
from qmop.compressors.base import ASKS, Declaration
from qmop.compressors.projector import Projector, text_width
from qmop.compressors.registry import build_compressor, method_class, option_names
from qmop.encoders import QueryEncoder, reader_of
from qmop.encoders.selections import require_every_patch
from qmop.feature_cache import CachedFeatures, FeatureCache
from qmop.image_arguments import one_layer
from qmop.image_side import ImageSide
from qmop.text_encoder import load_query_encoder

__all__ = ["Compression", "compress", "compression_of"]


def compress(
    model: Any,
    name: str,
    tokens: int | None = None,
    text_encoder: str | Path | QueryEncoder | None = None,
    *,
    query_tokenizer: Any = None,
    cache: FeatureCache | None = None,
    **options: Any,
) -> Compression:
    """Attach a training-free method to one model, until the handle is detached or its `with` block ends.

    `forward` and `generate` then take what the stock processor makes: placeholders beyond what the method keeps are
    dropped from ids, mask, positions and labels, and positions are counted anew over what remains (methods inside the
    language model keep the positions, and drop later). `forward` returns logits of the shorter rows; `generate`
    returns the rows that the caller passed in, continued. Weights, `state_dict` and `config` stay as they are.

    Args:
        model: a `LlavaForConditionalGeneration` with a CLIP or SigLIP tower.
        name: a method of `qmop.list_compressors()` without parameters of its own.
        tokens: M, visual tokens per image; the method's default when absent.
        text_encoder: for methods that read the question: the folder of the CLIP or SigLIP checkpoint that the vision
            tower came from, or an encoder (see `Compression.ask`).
        query_tokenizer: of a `text_encoder` that is no folder.
        cache: remembers tower features and compressed tokens at inference.
        options: the method's own fields.

    Raises:
        ValueError: if the model or the method is of the wrong kind, or they do not suit each other.
        FileNotFoundError: if the text encoder's folder holds no model.
    """
    _check_model(model)
    if method_class(name).declaration.trained:
        raise ValueError(f"compressor is {name!r}, which has parameters to train: use from_llava, and train it")
    with torch.device("meta"):
        declaration = _projector(model, name, tokens, None, options).declaration  # options may change what is read
    encoder, tokenizer = _text_side(model, declaration, text_encoder, query_tokenizer)
    projector = _projector(model, name, tokens, encoder, options)
    images = ImageSide(
        model.model.vision_tower,
        projector,
        encoder,
        cached=CachedFeatures(cache),
        label=(name, projector.compressor.tokens, repr(sorted(options.items()))),
    )
    return Compression(model, images, tokenizer, {"name": name, "tokens": projector.compressor.tokens, **options})


def _check_model(model: Any) -> None:
    """Refuse what is no stock LLaVA, or one that a method cannot be attached to."""
    if not isinstance(model, LlavaForConditionalGeneration) or model.config.model_type != "llava":
        raise ValueError(
            f"model is a {type(model).__name__}, but a stock LlavaForConditionalGeneration is needed: "
            "pass that, or the one inside a wrapper"
        )
    if (attached := compression_of(model)) is not None:
        raise ValueError(f"the model has {attached.declaration.name} attached already: detach that first")
    one_layer(model.config.vision_feature_layer, model.config.vision_config.num_hidden_layers)
    require_every_patch(model.config, "the model")


def _text_side(
    model: Any, declaration: Declaration, text_encoder: str | Path | QueryEncoder | None, query_tokenizer: Any
) -> tuple[QueryEncoder | None, Any]:
    """The question's encoder and tokenizer, for methods that read the question."""
    if not declaration.reads & ASKS:
        return None, None
    if text_encoder is None:
        raise ValueError(
            f"text_encoder is missing, but {declaration.name} reads the question: "
            "give the folder of the CLIP or SigLIP checkpoint that the vision tower came from"
        )
    vision = model.config.vision_config
    if not isinstance(text_encoder, QueryEncoder):
        return load_query_encoder(text_encoder, vision, dtype=model.model.vision_tower.dtype)
    mapped = text_encoder.visual_projection
    if mapped is not None and mapped.in_features != vision.hidden_size:
        raise ValueError(
            f"text_encoder maps patches of width {mapped.in_features}, but the vision tower's have "
            f"{vision.hidden_size}: give the encoder that is paired with this tower"
        )
    return text_encoder, query_tokenizer


def _projector(
    model: Any, name: str, tokens: int | None, encoder: QueryEncoder | None, options: dict[str, Any]
) -> Projector:
    """The method before (or behind) the model's own connector."""
    vision, width = model.config.vision_config, model.config.text_config.hidden_size
    filled, known, readout = dict(options), option_names(name), method_class(name).declaration.readout
    if "language_width" in known:
        filled.setdefault("language_width", width)
    if "text_width" in known and encoder is not None:
        filled.setdefault("text_width", text_width(encoder.text_tower.config))
    compressor = build_compressor(
        name,
        grid=vision.image_size // vision.patch_size,
        width=width if readout == "connector_first" else vision.hidden_size,
        tokens=tokens,
        **filled,
    )
    tower = reader_of(model.model.vision_tower)
    if "class_token" in compressor.declaration.reads and not tower.class_tokens:
        raise ValueError(f"{name} reads a class token, but a {vision.model_type} has none: choose class_token=False")
    connector: nn.Module = nn.Identity() if readout == "own" else model.model.multi_modal_projector
    return Projector(compressor.eval(), connector)
