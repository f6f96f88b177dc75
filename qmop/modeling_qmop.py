"""Hugging Face classes: stock LLaVA with a projector that may read the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageTextToText, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaModel, LlavaModelOutputWithPast, LlavaPreTrainedModel

from qmop.compressors import build_projector
from qmop.compressors.base import Compressor
from qmop.configuration_qmop import QMoPConfig
from qmop.encoders import QueryEncoder, visual_features
from qmop.features import CompressedTokens, Query


@dataclass
class ImageOutput(BaseModelOutputWithPooling):
    """Encoded images, in the form that stock `generate` takes as `mm_encoder_outputs={"image": ...}`.

    `pooler_output` holds the tokens of each image, `(m, D)` each; `compressed` everything that the method returned.
    """

    compressed: CompressedTokens | None = None


class QMoPPreTrainedModel(LlavaPreTrainedModel):
    """Start values: transformers' own, then those of our methods."""

    config: QMoPConfig
    config_class = QMoPConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Compressor):
            module.initialise()


class QMoPModel(QMoPPreTrainedModel, LlavaModel):
    """`LlavaModel` whose images go through a projector of the registry, guided by the question where it wants one."""

    def __init__(self, config: QMoPConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)  # not LlavaModel's, which would build its own projector
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = build_projector(config)
        self.query_encoder = None
        if config.query_config is not None:
            self.query_encoder = QueryEncoder(config.query_config, config.vision_config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_image_features(  # noqa: PLR0917 - transformers' own order of arguments
        self,
        pixel_values: Tensor,
        query_input_ids: Tensor | None = None,
        query_attention_mask: Tensor | None = None,
        image_rows: Tensor | None = None,
        visual_tokens: int | None = None,
        vision_feature_layer: int | None = None,
        **_: Any,
    ) -> ImageOutput:
        """Encode and compress images.

        Args:
            pixel_values: `(B, 3, H, W)`, normalised.
            query_input_ids: `(R, T)`, one question per prompt row.
            query_attention_mask: `(R, T)`.
            image_rows: `(B,)`, the prompt row of each image; image i belongs to row i when absent.
            visual_tokens: another budget than the built one, for elastic methods.
            vision_feature_layer: another layer than the configured one.

        Raises:
            ValueError: if a text-guided method gets no question, or images and questions cannot be matched.
        """
        projector, encoder = self.multi_modal_projector, self.query_encoder
        features = visual_features(
            self.vision_tower,
            pixel_values.to(self.dtype),
            projector.declaration,
            layer=self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer,
            attention_layer=self.config.importance_layer,
            projection=None if encoder is None else encoder.visual_projection,
        )
        query = self._query(query_input_ids, query_attention_mask, image_rows, len(pixel_values))
        compressed = projector(features, query, tokens=visual_tokens)
        return ImageOutput(pooler_output=compressed.per_image(), compressed=compressed)

    def _query(self, ids: Tensor | None, mask: Tensor | None, image_rows: Tensor | None, images: int) -> Query | None:
        """The question of each image, or None where the method reads none."""
        projector = self.multi_modal_projector
        if ids is None or "query" not in projector.declaration.reads:
            return None
        if self.query_encoder is None:
            raise ValueError(
                f"{projector.declaration.name} reads the question, but this model has no text tower: set query_config"
            )
        query = self.query_encoder(ids, mask)
        if image_rows is not None:
            return query.rows(image_rows)
        if len(ids) != images:
            raise ValueError(f"there are {images} images but {len(ids)} questions: pass image_rows, one row per image")
        return query

    def forward(  # noqa: PLR0917 - transformers' own order of arguments
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_input_ids: Tensor | None = None,
        query_attention_mask: Tensor | None = None,
        image_rows: Tensor | None = None,
        visual_tokens: int | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> LlavaModelOutputWithPast:
        """As `LlavaModel.forward`, with the question's tokens beside the pixels."""
        if pixel_values is not None:
            images = self.get_image_features(
                pixel_values, query_input_ids, query_attention_mask, image_rows, visual_tokens
            )
            mm_encoder_outputs = {**(mm_encoder_outputs or {}), "image": images}
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, mm_encoder_outputs=mm_encoder_outputs, **kwargs
        )


class QMoPForConditionalGeneration(QMoPPreTrainedModel, LlavaForConditionalGeneration):
    """`LlavaForConditionalGeneration` over a `QMoPModel`."""

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
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As stock LLaVA; the names of the question's tokens stand here because `generate` passes only named ones."""
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            query_input_ids=query_input_ids,
            query_attention_mask=query_attention_mask,
            image_rows=image_rows,
            visual_tokens=visual_tokens,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )


AutoModel.register(QMoPConfig, QMoPModel, exist_ok=True)
AutoModelForImageTextToText.register(QMoPConfig, QMoPForConditionalGeneration, exist_ok=True)
