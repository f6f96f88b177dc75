"""Pictures of our own model on their way to tokens: tower, method, connector, and the question where one is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from qmop.compressors.projector import Projector
from qmop.encoders import QueryEncoder, visual_features
from qmop.feature_cache import CachedFeatures, FeatureCache
from qmop.features import CompressedTokens, Query, VisualFeatures
from qmop.fitting import IMAGE_INPUTS
from qmop.identities import image_digests, module_identity, plain_settings, query_digests
from qmop.image_arguments import STOCK_IMAGE_INPUTS, one_layer, require_known, require_layers

KNOWN = frozenset({*IMAGE_INPUTS, *STOCK_IMAGE_INPUTS, "return_dict"})
"""Arguments of `get_image_features`, ours and stock LLaVA's."""


@dataclass
class ImageOutput(BaseModelOutputWithPooling):
    """Encoded images, in the form that stock `generate` takes as `mm_encoder_outputs={"image": ...}`.

    `pooler_output` holds the tokens of each image, `(m, D)` each; `compressed` everything that the method returned.
    """

    compressed: CompressedTokens | None = None


class ImageFeatures:
    """What `QMoPModel` does with pictures; the parts are built by the model."""

    config: Any
    dtype: Any
    vision_tower: Any
    language_model: Any
    multi_modal_projector: Projector
    query_encoder: QueryEncoder | None
    feature_cache: FeatureCache | None

    def get_image_features(  # noqa: PLR0917 - transformers' own order of arguments
        self,
        pixel_values: Tensor,
        query_input_ids: Tensor | None = None,
        query_attention_mask: Tensor | None = None,
        image_rows: Tensor | None = None,
        visual_tokens: int | None = None,
        language_query_ids: Tensor | None = None,
        language_query_mask: Tensor | None = None,
        overview_tiles: Tensor | None = None,
        vision_feature_layer: int | None = None,
        **others: Any,
    ) -> ImageOutput:
        """Encode and compress images.

        Args:
            pixel_values: `(B, 3, H, W)`, normalised; an image may be a tile of a larger picture.
            query_input_ids: `(R, T)`, one question per prompt row, or `(R, G, T)` in segments.
            query_attention_mask: of the same shape.
            image_rows: `(B,)`, the prompt row of each image; image i belongs to row i when absent.
            visual_tokens: another budget than the built one, for elastic methods.
            language_query_ids: `(R, T)`, the questions in the language model's own tokens.
            language_query_mask: `(R, T)`.
            overview_tiles: `(B,)`, for each tile the place in the batch of its picture's overview.
            vision_feature_layer: another layer than the configured one.
            others: of stock LLaVA's arguments `vision_feature_select_strategy`, which plays no part here.

        Raises:
            ValueError: if a text-guided method gets no question, images and questions cannot be matched, an argument
                is not known, or a layer is none of the vision tower's.
        """
        require_known(others, KNOWN)
        if others.get("return_dict") is False:
            raise ValueError("return_dict is False, but what was kept of the images is handed on by name: leave it out")
        config, layers = self.config, self.config.vision_config.num_hidden_layers
        layer = one_layer(config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer, layers)
        reads = self.multi_modal_projector.declaration.reads
        require_layers(
            config.importance_layer if reads & {"cls_attention", "keys"} else None,
            config.feature_levels if "levels" in reads else None,
            layers,
        )
        pixels = pixel_values.to(self.dtype)

        def asked() -> Query | None:
            query = self._query(query_input_ids, query_attention_mask, image_rows, len(pixels))
            if query is not None and language_query_ids is not None:
                states = self._language_query(language_query_ids, language_query_mask)
                query.language_BD = states if image_rows is None else states[image_rows]
            return query

        remembered = CachedFeatures(self.feature_cache, self.multi_modal_projector)
        if not remembered.active or overview_tiles is not None:
            features = self._see(pixels, layer, visual_tokens)
            if overview_tiles is not None and features.summary_BC is not None:
                features.summary_BC = features.summary_BC[overview_tiles]
            compressed = self.multi_modal_projector(features, asked(), tokens=visual_tokens)
        else:
            questions = [(query_input_ids, query_attention_mask), (language_query_ids, language_query_mask)]
            keys = list(zip(image_digests(pixels), *self._asked(questions, image_rows, len(pixels)), strict=True))
            compressed = self._remember(remembered, pixels, keys, asked, (layer, visual_tokens))
        return ImageOutput(pooler_output=compressed.per_image(), compressed=compressed)

    def _see(self, pixels: Tensor, layer: int, tokens: int | None) -> VisualFeatures:
        """The vision tower's pass, with what the method reads."""
        projector, config = self.multi_modal_projector, self.config
        return visual_features(
            self.vision_tower,
            projector.compressor.picture(pixels, config.vision_config.patch_size, tokens),
            projector.declaration,
            layer=layer,
            attention_layer=config.importance_layer,
            levels=config.feature_levels,
            query_encoder=self.query_encoder,
        )

    def _asked(
        self, questions: Sequence[tuple[Tensor | None, Tensor | None]], image_rows: Tensor | None, images: int
    ) -> list[list[bytes | None]]:
        """A digest of each image's question, in every form in which the method may read it."""
        if "query" not in self.multi_modal_projector.declaration.reads:
            return []
        rows = range(images) if image_rows is None else image_rows.tolist()
        digests = [query_digests(ids, mask) for ids, mask in questions if ids is not None]
        return [[each[row] for row in rows] for each in digests]

    def _remember(
        self,
        remembered: CachedFeatures,
        pixels: Tensor,
        keys: list[tuple[Any, ...]],
        asked: Callable[[], Query | None],
        settings: tuple[int, int | None],
    ) -> CompressedTokens:
        """Compress the images that were not seen with these questions before; the tower sees only new images."""
        projector, (layer, tokens) = self.multi_modal_projector, settings
        parts = (self.vision_tower, projector, self.query_encoder, self.language_model)
        config, weights = self.config, [module_identity(part) for part in parts if part is not None]
        set_to = (plain_settings(projector), config.importance_layer, repr(config.feature_levels))
        owner = (settings, set_to, tuple(weights))
        asked_of = None if self.query_encoder is None else module_identity(self.query_encoder)
        seen = (settings, set_to, projector.declaration, module_identity(self.vision_tower), asked_of)

        def compute(places: Tensor) -> CompressedTokens:
            query, on = asked(), places.to(pixels.device)
            features = remembered.features(
                pixels[on],
                lambda some: self._see(some, layer, tokens),
                owner=seen,
                digests=[keys[place][0] for place in places.tolist()],
            )
            return projector(features, None if query is None else query.rows(on), tokens=tokens)

        return remembered.compressed(keys, compute, owner=owner, device=pixels.device)

    def _query(self, ids: Tensor | None, mask: Tensor | None, image_rows: Tensor | None, images: int) -> Query | None:
        """The question of each image, or None where the method reads none."""
        declaration = self.multi_modal_projector.declaration
        if ids is None or "query" not in declaration.reads:
            return None
        if self.query_encoder is None:
            raise ValueError(
                f"{declaration.name} reads the question, but this model has no text tower: set query_config"
            )
        query = self.query_encoder(ids, mask, last="last_text" in declaration.reads)
        if image_rows is not None:
            return query.rows(image_rows)
        if len(ids) != images:
            raise ValueError(f"there are {images} images but {len(ids)} questions: pass image_rows, one row per image")
        return query

    @torch.no_grad()
    def _language_query(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The last real token of each question, by the language model's last layer, `(R, D)`."""
        mask = torch.ones_like(ids) if mask is None else mask
        states = self.language_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
        return states[torch.arange(len(ids), device=ids.device), last]
