"""What pictures go through on their way into a stock LLaVA that has a method attached: tower, method, connector."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qmop.compressors.base import Compressor, Declaration
from qmop.compressors.projector import Projector
from qmop.encoders import QueryEncoder, visual_features
from qmop.feature_cache import CachedFeatures
from qmop.features import CompressedTokens, Query, VisualFeatures
from qmop.identities import image_digests, module_identity, plain_settings, query_digests


@dataclass(frozen=True)
class Questions:
    """Questions of R prompts, and the prompt of each of B images.

    Attributes:
        input_ids: `(R, T)`, or `(R, G, T)` in segments.
        attention_mask: of the same shape; all is real when absent.
        rows_B: int64, on the host.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    rows_B: Tensor

    def encode(self, encoder: QueryEncoder, places: Tensor, declaration: Declaration) -> Query:
        """The question of some of the images."""
        device = encoder.text_tower.device
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        query: Query = encoder(self.input_ids.to(device), mask, last="last_text" in declaration.reads)
        return query.rows(self.rows_B[places].to(device))

    def digests(self) -> list[bytes]:
        """A digest of each image's question."""
        each = query_digests(self.input_ids, self.attention_mask)
        return [each[row] for row in self.rows_B.tolist()]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """One batch of images to be compressed.

    Attributes:
        pixels_BCHW: on the tower's device, in its precision.
        questions: for methods that read them.
        layer: hidden state that gives the patches.
        tokens: another budget than the built one.
    """

    pixels_BCHW: Tensor
    questions: Questions | None
    layer: int
    tokens: int | None


class ImageSide:
    """Images to tokens of language width, with the parts of a model that is not ours.

    Args:
        tower: the model's vision tower.
        projector: the method and the model's connector.
        query_encoder: for methods that read the question.
        cached: remembers images at inference.
        label: tells the method with its options and budget from any other.
    """

    def __init__(
        self,
        tower: Any,
        projector: Projector,
        query_encoder: QueryEncoder | None = None,
        *,
        cached: CachedFeatures,
        label: Hashable,
    ) -> None:
        self.tower, self.projector, self.query_encoder = tower, projector, query_encoder
        self.cached, self.label = cached, label

    def __call__(self, pictures: Pictures) -> CompressedTokens:
        """Compress, or remember."""
        self._follow()
        pixels, questions = pictures.pixels_BCHW, pictures.questions
        if not self.cached.active:
            return self._compute(pictures, torch.arange(len(pixels)))
        images = image_digests(pixels)
        asked: Sequence[bytes | None] = [None] * len(images) if questions is None else questions.digests()
        return self.cached.compressed(
            list(zip(images, asked, strict=True)),
            lambda places: self._compute(pictures, places, images),
            owner=(self._seen_by(pictures), *self._compressed_by(pictures)),
            device=pixels.device,
        )

    def _compute(self, pictures: Pictures, places: Tensor, digests: Sequence[bytes] = ()) -> CompressedTokens:
        """Tokens of some of the images."""
        pixels, questions = pictures.pixels_BCHW, pictures.questions
        if len(places) < len(pixels):
            pixels = pixels[places.to(pixels.device)]
        features = self.cached.features(
            pixels,
            lambda some: self._see(pictures, some),
            owner=self._seen_by(pictures) if digests else None,
            digests=[digests[place] for place in places.tolist()] if digests else None,
        )
        query = None
        if questions is not None and self.query_encoder is not None:
            query = questions.encode(self.query_encoder, places, self.projector.declaration)
        return self.projector(features, query, tokens=pictures.tokens)

    def _see(self, pictures: Pictures, pixels: Tensor) -> VisualFeatures:
        """The tower's pass over some of the images."""
        shown = self.projector.compressor.picture(pixels, self.tower.config.patch_size, pictures.tokens)
        return visual_features(
            self.tower,
            shown,
            self.projector.declaration,
            layer=pictures.layer,
            query_encoder=self.query_encoder,
        )

    def _seen_by(self, pictures: Pictures) -> Hashable:
        """What the features of an image depend on beside its pixels, so that methods that read the same share them."""
        told, method = self.projector.declaration, self.projector.compressor
        reads = tuple(sorted(told.reads))
        parts: list[Hashable] = [module_identity(self.tower), pictures.layer, reads]
        if told.reads & {"cls_attention", "keys"}:
            parts += [told.attention_layer, told.split_heads]
        if "text_space" in told.reads and self.query_encoder is not None:
            parts += [told.text_layer, told.text_norm, module_identity(self.query_encoder)]
        if type(method).picture is not Compressor.picture:
            parts += self._compressed_by(pictures)
        return tuple(parts)

    def _compressed_by(self, pictures: Pictures) -> tuple[Hashable, ...]:
        """The method with its options and budget, and the weights behind it."""
        asked = None if self.query_encoder is None else module_identity(self.query_encoder)
        set_to = plain_settings(self.projector.compressor)
        return self.label, set_to, pictures.tokens, module_identity(self.projector.connector), asked

    def _follow(self) -> None:
        """What is not part of the model goes where the model has gone."""
        device, dtype = self.tower.device, self.tower.dtype
        method, asked = self.projector.compressor, self.query_encoder
        if any(buffer.device != device for buffer in method.buffers()):
            method.to(device)
        if asked is not None and (asked.text_tower.device, asked.text_tower.dtype) != (device, dtype):
            asked.to(device=device, dtype=dtype)
