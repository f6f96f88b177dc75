"""Pictures, prompts and questions to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor, BatchFeature
from transformers.processing_utils import ProcessorMixin

from qmop.compressors.base import one_of
from qmop.compressors.projector import projector_spec
from qmop.compressors.registry import method_class
from qmop.configuration_qmop import QMoPConfig
from qmop.fitting import IMAGE_INPUTS
from qmop.json_files import read_object
from qmop.pixels import shown
from qmop.queries import QueryPolicy, chosen_query
from qmop.slicing import candidate_grids, tile_layout
from qmop.text_encoder import VOCABULARIES
from qmop.tiles import pictures_of, tile_pictures

_budget: ContextVar[int | None] = ContextVar("visual tokens asked for in this call", default=None)


class QMoPProcessor(ProcessorMixin):
    """Image processor, language tokenizer and the tokenizer of the question's tower.

    Args:
        image_processor: of the vision tower.
        tokenizer: of the language model.
        query_tokenizer: of the text tower; the language model's stands in where no method reads the question.
        visual_tokens: placeholders per image, the projector's `token_count`.
        image_token: the placeholder.
        chat_template: Jinja template of a conversation.
        query_policy: which turn of a conversation `apply_chat_template` takes for the question.
        query_segments: into how many pieces a long question is cut for the text tower; with one it is truncated.
        query_strip: texts removed from questions, such as a fixed "answer with a single word"; the same in
            training and at inference.
        language_query: also tokenize the question for the language model (for methods that read it there).
        max_tiles: cut pictures into at most so many tiles and an overview, each of `visual_tokens` placeholders
            (TokenPacker-HD, see `qmop.slicing`); one whole picture of the tower's size when absent.
        tile_separators: text between the tiles of a row, and text behind a row.
        query_length: tokens that the text tower reads; longer questions are cut, as by the tokenizer's own length.
    """

    def __init__(  # noqa: PLR0917 - transformers' own order of arguments
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        query_tokenizer: Any = None,
        visual_tokens: int = 576,
        image_token: str = "<image>",  # noqa: S107 - a placeholder in a prompt, not a secret
        chat_template: str | None = None,
        query_policy: QueryPolicy = "latest",
        query_segments: int = 1,
        query_strip: Sequence[str] = (),
        language_query: bool = False,
        max_tiles: int | None = None,
        tile_separators: Sequence[str] = (",", "\n"),
        query_length: int | None = None,
    ) -> None:
        one_of("query_policy", query_policy, QueryPolicy)
        require_count("visual_tokens", visual_tokens)
        if query_segments < 1:
            raise ValueError(f"query_segments is {query_segments}: choose 1 (truncate) or more")
        if isinstance(query_strip, str):
            raise ValueError(f"query_strip is {query_strip!r}, but it lists texts: write [{query_strip!r}]")
        if max_tiles is not None:
            candidate_grids(max_tiles)
        if len(tile_separators) != 2 or image_token in "".join(tile_separators):  # noqa: PLR2004 - column and row
            raise ValueError(
                f"tile_separators is {tile_separators!r}: give the text between tiles and the text behind a row"
            )
        self.visual_tokens = visual_tokens
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.query_policy: QueryPolicy = query_policy
        self.query_segments, self.query_strip = query_segments, list(query_strip)
        self.language_query, self.query_length = language_query, query_length
        self.max_tiles, self.tile_separators = max_tiles, list(tile_separators)
        query_tokenizer = tokenizer if query_tokenizer is None else query_tokenizer
        super().__init__(image_processor, tokenizer, query_tokenizer, chat_template=chat_template)

    @classmethod
    def for_config(cls, config: QMoPConfig, like: QMoPProcessor) -> QMoPProcessor:
        """The processor of another compressor over the same towers: what depends on the method changes."""
        return cls(
            like.image_processor,
            like.tokenizer,
            like.query_tokenizer,
            visual_tokens=projector_spec(config).token_count(),
            image_token=like.image_token,
            chat_template=like.chat_template,
            query_policy=like.query_policy,
            query_segments=like.query_segments,
            query_strip=like.query_strip,
            language_query="language_query" in method_class(config.compressor).declaration.reads,
            max_tiles=like.max_tiles,
            tile_separators=like.tile_separators,
            query_length=question_length(config) or like.query_length,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As any processor's.

        Raises:
            ValueError: if a folder lacks the tokenizer of questions, for which the language model's would stand in.
        """
        folder = Path(pretrained_model_name_or_path) / kwargs.get("subfolder", "")
        if folder.is_dir():
            _require_questions(folder)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **_: Any) -> str:
        """Every placeholder stands for the same number of tokens."""
        del image_inputs, image_idx
        return self.image_token * (_budget.get() or self.visual_tokens)

    def _process_images(self, images: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        """Pixels of whole pictures or of tiles, and what stands for each picture in the prompt."""
        images = shown(images)  # once more, for those that were fetched since
        if self.max_tiles is None:
            return super()._process_images(images, **kwargs)
        tiled = tile_pictures(self.image_processor, images, self.max_tiles, **kwargs)
        tokens, (column, row) = _budget.get() or self.visual_tokens, self.tile_separators
        layouts = [tile_layout(grid, tokens, self.image_token, column=column, row=row) for grid in tiled.grids]
        return {"pixel_values": tiled.pixels_BCHW, "overview_tiles": tiled.overview_tiles}, layouts

    def __call__(
        self, images: Any = None, text: Any = None, query: Any = None, visual_tokens: int | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Prepare model inputs.

        Args:
            images: pictures, or names of their files, in the order of their placeholders.
            text: one prompt or several, each with one placeholder per picture.
            query: the question of each prompt (one for all its pictures), for text-guided methods.
            visual_tokens: another budget than the built one, for elastic methods.
            kwargs: as for any processor, such as `padding` and `return_tensors`.

        Raises:
            ValueError: if there are not as many questions as prompts, `visual_tokens` is no count, or a picture is a
                sliver (see `qmop.pixels.shown`).
        """
        if visual_tokens is not None:
            require_count("visual_tokens", visual_tokens)
        prompts = [text] if isinstance(text, str) else list(text or [])
        token = _budget.set(visual_tokens)
        try:
            batch = super().__call__(images=shown(images), text=prompts, **kwargs)
        finally:
            _budget.reset(token)
        if visual_tokens is not None:
            batch["visual_tokens"] = visual_tokens
        if query is not None:
            questions = [query] if isinstance(query, str) else list(query)
            if len(questions) != len(prompts):
                raise ValueError(
                    f"query has {len(questions)} questions for {len(prompts)} prompts: pass one per prompt"
                )
            batch.update(self.query_inputs(questions))
        counts = [prompt.count(self.image_token) for prompt in prompts]
        rows = torch.tensor([row for row, count in enumerate(counts) for _ in range(count)])
        if "overview_tiles" in batch:
            batch["image_rows"] = rows.repeat_interleave(pictures_of(batch["overview_tiles"]))
        elif any(counts) and any(count != 1 for count in counts):
            batch["image_rows"] = rows
        return batch

    def query_inputs(self, questions: Sequence[str]) -> dict[str, Tensor]:
        """Questions as the text tower reads them, and as the language model does where a method wants that.

        Returns:
            `query_input_ids` and `query_attention_mask`, `(R, T)` or `(R, G, T)` in segments.
        """
        for ending in self.query_strip:
            questions = [question.replace(ending, "").strip() for question in questions]
        cut = self._segmented if self.query_segments > 1 else self._truncated
        inputs = dict(zip(("query_input_ids", "query_attention_mask"), cut(questions), strict=True))
        if self.language_query:
            words = self.tokenizer(list(questions), padding=True, return_tensors="pt")
            inputs |= {"language_query_ids": words["input_ids"], "language_query_mask": words["attention_mask"]}
        return inputs

    def _cut(self) -> dict[str, Any]:
        """How a tokenizer is told to cut a question to what the text tower reads."""
        own = self.query_tokenizer.model_max_length
        return {"truncation": True, "max_length": None if self.query_length is None else min(self.query_length, own)}

    def _truncated(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens = self.query_tokenizer(list(questions), padding=True, **self._cut(), return_tensors="pt")
        return tokens["input_ids"], tokens["attention_mask"]

    def _segmented(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Questions in pieces of the tower's length, `(R, G, T)`; absent pieces have a mask of zeros."""
        tokens = self.query_tokenizer(
            list(questions), padding=True, **self._cut(), return_overflowing_tokens=True, return_tensors="pt"
        )
        row = tokens["overflow_to_sample_mapping"]
        piece = torch.arange(len(row)) - torch.searchsorted(row, row)
        kept = piece < self.query_segments
        shape = (len(questions), int(piece[kept].max()) + 1, tokens["input_ids"].shape[1])
        ids = torch.full(shape, self.query_tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        ids[row[kept], piece[kept]] = tokens["input_ids"][kept]
        mask[row[kept], piece[kept]] = tokens["attention_mask"][kept]
        return ids, mask

    def apply_chat_template(self, conversation: Any, *args: Any, query: Any = None, **kwargs: Any) -> Any:
        """As any processor's; with `tokenize=True` the question is derived from the conversation by `query_policy`.

        Args:
            conversation: one conversation or several.
            args: as for any processor.
            query: the question of each conversation, instead of the derived one.
            kwargs: as for any processor.
        """
        if kwargs.get("tokenize"):
            if query is None:
                several = isinstance(conversation[0], list | tuple)
                talks = conversation if several else [conversation]
                query = [chosen_query(talk, self.query_policy) for talk in talks]
            kwargs["processor_kwargs"] = {**(kwargs.get("processor_kwargs") or {}), "query": query}
        return super().apply_chat_template(conversation, *args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """Everything that `__call__` may return."""
        return list(dict.fromkeys([*super().model_input_names, *IMAGE_INPUTS]))


def question_length(config: QMoPConfig) -> int | None:
    """Tokens of a question that a model's text tower reads; None where there is no such tower."""
    return getattr(config.query_config, "max_position_embeddings", None)


def require_count(field: str, value: Any) -> None:
    """Refuse what is no number of tokens.

    Raises:
        ValueError: with the field and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{field} is {value!r}: give a whole number of tokens, 1 or more")


def _require_questions(folder: Path) -> None:
    """Refuse a folder without the tokenizer of questions; transformers would take the one beside it instead."""
    config, place = folder / "config.json", folder / "query_tokenizer"
    if any((place / name).is_file() for name in VOCABULARIES):
        return
    if not config.is_file() or read_object(config).get("query_config") is not None:
        raise ValueError(
            f"{folder} lacks query_tokenizer/, the tokenizer of the text tower: copy that folder as well, or save the "
            "processor there again"
        )


AutoProcessor.register(QMoPConfig, QMoPProcessor, exist_ok=True)
