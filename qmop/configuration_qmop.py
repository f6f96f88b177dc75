"""Configuration of a LLaVA with a compressor between its vision tower and its language model."""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlavaConfig, PretrainedConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class QMoPConfig(LlavaConfig):
    """A `LlavaConfig` that also names the compressor, its budget and its fields, and the text tower.

    Args:
        query_config: the text tower paired with the vision tower; absent for methods that read no question.
        compressor: a name of `qmop.list_compressors()`.
        compressor_tokens: M, tokens per image; the method's default when absent.
        compressor_options: the method's own fields.
        importance_layer: vision block whose class attention and keys are read; the one that the method declares
            when absent (the paper and its reference baseline differ, so it is a field).
        feature_levels: hidden states that methods with several levels read; see `qmop.encoders.default_levels`.
    """

    model_type = "qmop"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        **LlavaConfig.sub_configs_defaults,
        "query_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_text_model", optional=True),
    }

    query_config: dict | PretrainedConfig | None = None
    compressor: str = "mlp"
    compressor_tokens: int | None = None
    compressor_options: dict[str, Any] | None = None
    importance_layer: int | None = None
    feature_levels: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill the open fields."""
        super().__post_init__(**kwargs)
        if self.compressor_options is None:
            self.compressor_options = {}


AutoConfig.register("qmop", QMoPConfig, exist_ok=True)
