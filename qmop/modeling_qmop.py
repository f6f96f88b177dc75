"""Hugging Face classes: stock LLaVA with a projector that may read the question."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageTextToText, LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaModel, LlavaModelOutputWithPast, LlavaPreTrainedModel

import qmop.processing_qmop  # noqa: F401 - for who loads a model by transformers' Auto classes wants its processor too
from qmop.compressors import projector_spec
from qmop.compressors.base import Compressor
from qmop.configuration_qmop import QMoPConfig
from qmop.continuing import mark_shorter, require_pictures, require_whole_prefill
from qmop.encoders import QueryEncoder
from qmop.fitting import IMAGE_INPUTS, fit_pass, generate_fitted
from qmop.image_arguments import STOCK_IMAGE_INPUTS
from qmop.image_features import ImageFeatures, ImageOutput
from qmop.in_llm import PASS, attach_reducer, forward_reduced
from qmop.reduced_pass import Once

__all__ = ["ImageOutput", "QMoPForConditionalGeneration", "QMoPModel", "QMoPPreTrainedModel"]


class QMoPPreTrainedModel(LlavaPreTrainedModel):
    """Start values: transformers' own, then those of our methods."""

    config: QMoPConfig
    config_class = QMoPConfig

    @classmethod
    def is_custom_code(cls) -> bool:
        """Be treated as transformers' own models are: every module is visited for its start values.

        Modules of other code are passed over where they hold no parameters of their own; ours start their children.
        All our start values go through `transformers.initialization`, which leaves loaded parameters alone.
        """
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Compressor):
            module.initialise()


class QMoPModel(ImageFeatures, QMoPPreTrainedModel, LlavaModel):
    """`LlavaModel` whose images go through a projector of the registry, guided by the question where it wants one."""

    def __init__(self, config: QMoPConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)  # not LlavaModel's, which would build its own projector
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = projector_spec(config).build()
        self.query_encoder = None
        if config.query_config is not None:
            self.query_encoder = QueryEncoder(config.query_config, config.vision_config)
        self.language_model = AutoModel.from_config(config.text_config)
        method: Any = self.multi_modal_projector.compressor
        self.reducer = attach_reducer(self.language_model, method) if method.declaration.acts == "in_llm" else None
        self.feature_cache = None
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> LlavaModelOutputWithPast:
        """As `LlavaModel.forward`, with the question's tokens (see `get_image_features`) beside the pixels.

        States are those of the rows that the language model reads: without the placeholders that no token fills, and
        without what a method inside the language model drops.
        """
        asked = {name: kwargs.pop(name) for name in (*IMAGE_INPUTS[1:], *STOCK_IMAGE_INPUTS) if name in kwargs}
        images = dict(mm_encoder_outputs or {})
        if pixel_values is not None:
            images["image"] = self.get_image_features(pixel_values, **asked)
        words = self.fitted({"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}, images)
        if self.reducer is None or PASS in kwargs:
            return super().forward(**words)
        return forward_reduced(self, super().forward, words)

    def fitted(self, words: dict[str, Any], images: dict[str, Any]) -> dict[str, Any]:
        """Inputs of a pass over encoded images, see `fit_pass`; embeddings without ids go through as they are.

        Raises:
            ValueError: if the placeholders do not suit the images.
        """
        if images.get("image") is None or words.get("input_ids") is None or self._counts_stay(images["image"]):
            return {**words, "mm_encoder_outputs": images or None}
        return fit_pass(self.config, words, images, most=self.multi_modal_projector.token_count())

    def _counts_stay(self, images: Any) -> bool:
        """Whether a compiled graph may stay whole because no prompt has placeholders to spare."""
        if not torch.compiler.is_compiling():
            return False
        compressed, full = getattr(images, "compressed", None), self.multi_modal_projector.token_count()
        return compressed is None or (compressed.mask_BM is None and compressed.tokens_BMC.shape[1] >= full)


class QMoPForConditionalGeneration(QMoPPreTrainedModel, LlavaForConditionalGeneration):
    """`LlavaForConditionalGeneration` over a `QMoPModel`.

    Where a method keeps fewer tokens of an image than the prompt has placeholders, the surplus is dropped; `forward`
    then returns logits of the shorter rows, and `generate` still returns what the caller passed in, continued.
    """

    def __init__(self, config: QMoPConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = QMoPModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> ImageOutput:
        """See `QMoPModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(  # noqa: PLR0917 - transformers' own order of arguments
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_input_ids: Tensor | None = None,
        query_attention_mask: Tensor | None = None,
        image_rows: Tensor | None = None,
        visual_tokens: int | None = None,
        language_query_ids: Tensor | None = None,
        language_query_mask: Tensor | None = None,
        overview_tiles: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        once: Once | None = None,
        **kwargs: Any,
    ) -> Any:
        """As stock LLaVA; the names of the question's tokens stand here because `generate` passes only named ones.

        Raises:
            ValueError: if the placeholders do not suit the pictures.
        """
        images = dict(mm_encoder_outputs or {})
        stock = {name: kwargs.pop(name) for name in STOCK_IMAGE_INPUTS if name in kwargs}
        if pixel_values is not None:
            asked = {
                **stock,
                "query_input_ids": query_input_ids,
                "query_attention_mask": query_attention_mask,
                "image_rows": image_rows,
                "visual_tokens": visual_tokens,
                "language_query_ids": language_query_ids,
                "language_query_mask": language_query_mask,
                "overview_tiles": overview_tiles,
            }
            images["image"] = self.get_image_features(pixel_values, **asked)
        words = self.model.fitted({"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}, images)
        shorter = words["input_ids"] is not input_ids
        if self.model.reducer is not None:
            output = forward_reduced(self, super().forward, words, once)
        else:
            output = super().forward(**words)
        if shorter:
            mark_shorter(output if isinstance(output, tuple) else output.values())
        return output

    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """As stock `generate`, with the inputs of `forward`; rows of ids come back as they were, continued.

        To go on from a cache whose rows were shortened, pass the pictures again beside it, those of the turns before
        among them: they tell which placeholders it holds.

        Raises:
            ValueError: as `forward`; if such a cache goes on without its pictures; if a method inside the language
                model is to fill the cache piece by piece.
        """
        if generation_config is not None:
            kwargs["generation_config"] = generation_config
        if self.model.reducer is not None:
            require_whole_prefill(kwargs, self.generation_config)
            kwargs["once"] = Once()
        elif kwargs.get("pixel_values") is None and not kwargs.get("mm_encoder_outputs"):
            ids = kwargs.get("input_ids", inputs)
            require_pictures(self.config, ids, kwargs.get("past_key_values"), always=False)
        stock = {name: kwargs.pop(name) for name in STOCK_IMAGE_INPUTS if name in kwargs}
        encode, most = partial(self.get_image_features, **stock), self.model.multi_modal_projector.token_count()
        return generate_fitted(super().generate, encode, self, inputs, kwargs, most=most)


AutoModel.register(QMoPConfig, QMoPModel, exist_ok=True)
AutoModelForImageTextToText.register(QMoPConfig, QMoPForConditionalGeneration, exist_ok=True)
