"""The handle of a method attached to a stock LLaVA: what stands in for the instance's own methods while it is there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from qmop.compressors.base import Declaration
from qmop.compressors.projector import Projector
from qmop.continuing import require_pictures, require_whole_prefill
from qmop.fitting import IMAGE_INPUTS, fit_pass, generate_fitted, take_image_inputs
from qmop.image_arguments import STOCK_IMAGE_INPUTS, one_layer, require_known
from qmop.image_features import KNOWN, ImageOutput
from qmop.image_side import ImageSide, Pictures, Questions
from qmop.in_llm import Reducer, attach_reducer, forward_reduced
from qmop.reduced_pass import Once

_STOCK = inspect.signature(LlavaForConditionalGeneration.forward)
_ORDER = [name for name in list(_STOCK.parameters)[1:] if name != "kwargs"]


def _signed(method: Callable[..., Any]) -> Callable[..., Any]:
    """Show the stock signature of `forward` with our names: `generate` and trainers pass what they read there."""
    new = [name for name in (*IMAGE_INPUTS, "once") if name not in _STOCK.parameters]
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in new]
    *stock, rest = _STOCK.parameters.values()
    shown: Any = method
    shown.__signature__ = _STOCK.replace(parameters=[*stock, *named, rest])
    return method


def compression_of(model: Any) -> Compression | None:
    """The handle of what is attached to a model, such as to a copy of one that had a method attached."""
    handle = getattr(vars(model).get("generate"), "__self__", None)
    return handle if isinstance(handle, Compression) else None


class Compression:
    """The handle of an attached method; made by `compress`.

    It is no module and holds the method beside the model, so that nothing of it enters the model's `state_dict`.

    Attributes:
        model: the model.
        projector: the method and the model's own connector.
        settings: arguments of `compress` that make the same again: name, tokens and options.
    """

    def __init__(self, model: Any, images: ImageSide, query_tokenizer: Any, settings: dict[str, Any]) -> None:
        self.model, self.settings = model, settings
        self.query_tokenizer, self._images = query_tokenizer, images
        self._reducer: Reducer | None = None
        if self.declaration.acts == "in_llm":
            compressor: Any = images.projector.compressor
            self._reducer = attach_reducer(model.model.language_model, compressor)
        self._stock = {"forward": model.forward, "generate": model.generate}
        self._own = [(model, "forward"), (model, "generate"), (model.model, "get_image_features")]
        self._before = [vars(module).get(name) for module, name in self._own]
        for module, name in self._own:
            setattr(module, name, getattr(self, name))

    @property
    def projector(self) -> Projector:
        """The method and the model's own connector."""
        return self._images.projector

    @property
    def declaration(self) -> Declaration:
        """What the method reads and how it acts."""
        return self.projector.declaration

    @property
    def query_config(self) -> Any:
        """The configuration of the text tower, for `qmop.cost.cost_of`; None for methods that read no question."""
        encoder = self._images.query_encoder
        return None if encoder is None else encoder.text_tower.config

    def detach(self) -> None:
        """Give the model back as it was; a second time does nothing."""
        if self._reducer is not None:
            self._reducer.detach()
        for (module, name), before in zip(self._own, self._before, strict=True):
            vars(module).pop(name, None)
            if before is not None:  # such as what device placement had put there
                setattr(module, name, before)
        self._own, self._before = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def ask(self, question: str | Sequence[str]) -> dict[str, Tensor]:
        """Questions as inputs of `forward` and `generate`; nothing for methods that read none.

        Args:
            question: of each prompt, shared by its pictures; cut to what the text tower can hold.

        Returns:
            `query_input_ids` and `query_attention_mask`, `(R, T)`.

        Raises:
            ValueError: if there is no question, or the encoder was given without its tokenizer.
        """
        if not question:
            raise ValueError("question is empty: give the words of the question, or those of each prompt")
        encoder = self._images.query_encoder
        if encoder is None:
            return {}
        if self.query_tokenizer is None:
            raise ValueError("query_tokenizer is missing: pass compress() the tokenizer of text_encoder, or its folder")
        batch = self.query_tokenizer(
            [question] if isinstance(question, str) else list(question),
            padding=True,
            truncation=True,
            max_length=encoder.text_tower.config.max_position_embeddings,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.model.device)
        return {"query_input_ids": batch["input_ids"], "query_attention_mask": batch["attention_mask"]}

    @_signed
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As stock, with the question's tokens (see `ask`), `image_rows` and `visual_tokens` beside the pixels.

        Raises:
            ValueError: if there are pictures but no ids, or the placeholders do not suit the pictures.
        """
        words = {**dict(zip(_ORDER, args, strict=False)), **kwargs}
        once, ids = words.pop("once", None), words.get("input_ids")
        asked = self._asked(words, ids)
        images = dict(words.pop("mm_encoder_outputs", None) or {})
        if asked.get("pixel_values") is not None:
            images["image"] = self.get_image_features(**asked)
        if images.get("image") is not None:
            if ids is None:
                raise ValueError("inputs_embeds do not tell where the pictures are: pass input_ids")
            words = fit_pass(self.model.config, words, images, most=self._most)
        if self._reducer is None:
            return self._stock["forward"](**words)
        return forward_reduced(self.model, self._stock["forward"], words, once)

    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """As stock, with the inputs of `forward`; rows of ids come back as they were, continued.

        To go on from a cache, pass the pictures again beside it, those of the turns before among them: they tell which
        placeholders it holds.

        Raises:
            ValueError: as `forward`; if a cache goes on without its pictures; if a method inside the language model
                is to fill the cache piece by piece.
        """
        ids = kwargs.get("input_ids", inputs)
        if generation_config is not None:
            kwargs["generation_config"] = generation_config
        seen = kwargs.get("pixel_values") is not None or bool(kwargs.get("mm_encoder_outputs"))
        if self._reducer is not None:
            require_whole_prefill(kwargs, self.model.generation_config)
            kwargs["once"] = Once()
        elif not seen:
            require_pictures(self.model.config, ids, kwargs.get("past_key_values"), always=True)
        asked = self._asked(kwargs, ids)
        stock = {name: asked.pop(name) for name in STOCK_IMAGE_INPUTS if name in asked}
        encode = partial(self.get_image_features, **stock)
        words = {**kwargs, **asked}
        return generate_fitted(self._stock["generate"], encode, self.model, inputs, words, most=self._most)

    def get_image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
        *,
        query_input_ids: Tensor | None = None,
        query_attention_mask: Tensor | None = None,
        image_rows: Tensor | None = None,
        visual_tokens: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode and compress images; see `QMoPModel.get_image_features`.

        Raises:
            ValueError: if the method reads a question and there is none, or it is not known whose it is; if an argument
                is not known, or the layer is none of the vision tower's.
        """
        del vision_feature_select_strategy  # methods read patches; the class token only where they declare it
        require_known(kwargs, KNOWN)
        config, tower = self.model.config, self._images.tower
        pictures = Pictures(
            pixels_BCHW=pixel_values.to(tower.device, tower.dtype),
            questions=self._questions(query_input_ids, query_attention_mask, image_rows, len(pixel_values)),
            layer=one_layer(
                config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer,
                config.vision_config.num_hidden_layers,
            ),
            tokens=visual_tokens,
        )
        compressed = self._images(pictures)
        images = ImageOutput(pooler_output=compressed.per_image(), compressed=compressed)
        return images.to_tuple() if kwargs.get("return_dict") is False else images

    def _questions(
        self, ids: Tensor | None, mask: Tensor | None, image_rows: Tensor | None, images: int
    ) -> Questions | None:
        """The question of each image, or None where the method reads none."""
        if "query" not in self.declaration.reads:
            return None
        if ids is None:
            raise ValueError(
                f"query is missing, but {self.declaration.name} reads the question: "
                "add **handle.ask(question) to the inputs"
            )
        if image_rows is None and len(ids) != images:
            raise ValueError(f"there are {images} images but {len(ids)} questions: pass image_rows, one row per image")
        rows = torch.arange(images) if image_rows is None else image_rows.cpu()
        return Questions(input_ids=ids, attention_mask=mask, rows_B=rows)

    def _asked(self, words: dict[str, Any], ids: Tensor | None) -> dict[str, Any]:
        """Take out of a call what the images' side reads; the prompt of each image is counted off where it is open."""
        asked = take_image_inputs(words)
        asked |= {name: words.pop(name) for name in STOCK_IMAGE_INPUTS if name in words}
        pixels, questions = asked.get("pixel_values"), asked.get("query_input_ids")
        if pixels is None or questions is None or ids is None or asked.get("image_rows") is not None:
            return asked
        counts_R = (ids == self.model.config.image_token_id).sum(dim=1)
        each = int(counts_R.sum()) // len(pixels)
        rows = torch.arange(len(ids), device=ids.device).repeat_interleave(counts_R // max(each, 1))
        if len(rows) == len(pixels) and len(questions) == len(ids):
            asked["image_rows"] = rows
        return asked

    @property
    def _most(self) -> int:
        """Placeholders per image that the stock processor writes: one for each patch."""
        return self.projector.compressor.grid**2
