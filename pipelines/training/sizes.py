"""The configuration that parts will have together, known before any weight is fetched.

For the published parts of LLaVA-1.5 it stands here, so that a plan can be made without network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, LlamaConfig

from pipelines.training.parts import Parts, hub_name, local_part
from qmop.configuration_qmop import QMoPConfig
from qmop.cost import llava_config
from qmop.encoders.selections import SELECTIONS


def llava_13b() -> QMoPConfig:
    """The configuration of LLaVA-1.5-13B."""
    fields = llava_config().to_dict()
    text = fields["text_config"] | {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    }
    text.pop("head_dim", None)
    return QMoPConfig.from_dict({**fields, "text_config": LlamaConfig(**text).to_dict()})


LANGUAGE: dict[str, Callable[[], QMoPConfig]] = {
    "lmsys/vicuna-7b-v1.5": llava_config,
    "lmsys/vicuna-13b-v1.5": llava_13b,
}
"""Published language models; their 32,000 words become 32,064 with the placeholder."""

VISION = ("openai/clip-vit-large-patch14-336",)
"""Published pairs of towers, which `llava_config` describes."""

LLAVA: dict[str, Callable[[], QMoPConfig]] = {
    "llava-hf/llava-1.5-7b-hf": llava_config,
    "llava-hf/llava-1.5-13b-hf": llava_13b,
}


def config_of(parts: Parts) -> QMoPConfig:
    """The configuration of the base that these parts make, without compression.

    Unknown parts are asked for their config.json. A language model's vocabulary may still grow by a few words.

    Raises:
        FileNotFoundError: if a part is missing.
        ValueError: if a part is of the wrong kind.
    """
    fields = _llava_fields(parts.llava) if parts.llava else _pair_fields(parts)
    if parts.vision:
        fields["query_config"] = _towers(parts.vision)["query_config"]
    fields |= {"compressor": "mlp", "compressor_tokens": None, "compressor_options": {}}
    return QMoPConfig.from_dict(fields)


def _llava_fields(place: str) -> dict[str, Any]:
    if (known := LLAVA.get(hub_name(place) or "")) is not None:
        return {**known().to_dict(), "query_config": None}
    stock = _config("llava", place)
    if stock.model_type != "llava":
        raise ValueError(f"llava is {place!r}, which holds a {stock.model_type} model: give a stock LLaVA")
    return {name: value for name, value in stock.to_dict().items() if name not in ("model_type", "architectures")}


def _pair_fields(parts: Parts) -> dict[str, Any]:
    assert parts.language is not None
    assert parts.vision is not None
    known = LANGUAGE.get(hub_name(parts.language) or "")
    text = known().text_config if known else _config("language", parts.language)
    towers = _towers(parts.vision)
    return {
        **towers,
        "text_config": text.to_dict(),
        "image_token_index": text.vocab_size - 1,
        "tie_word_embeddings": text.tie_word_embeddings,
        "vision_feature_select_strategy": SELECTIONS[towers["vision_config"]["model_type"]],
    }


def _towers(place: str) -> dict[str, Any]:
    """The configurations of both towers."""
    if hub_name(place) in VISION:
        known = llava_config().to_dict()
        return {name: known[name] for name in ("vision_config", "query_config")}
    both = _config("vision", place)
    if getattr(getattr(both, "vision_config", None), "model_type", None) not in SELECTIONS:
        raise ValueError(f"vision is {place!r}, which holds a {both.model_type} model: give a CLIP or SigLIP")
    text = both.text_config
    if getattr(both, "projection_dim", None):
        text.projection_dim = both.projection_dim
    return {"vision_config": both.vision_config.to_dict(), "query_config": text.to_dict()}


def _config(field: str, place: str) -> Any:
    with local_part(field, place, only_config=True) as folder:
        return _read(folder, field, place)


def _read(folder: Path, field: str, place: str) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{field} is {place!r}, whose config.json is of an unknown kind: give a model that transformers knows"
        ) from error
