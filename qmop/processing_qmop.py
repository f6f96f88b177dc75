"""Pictures, prompts and questions to tensors."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoProcessor, BatchFeature
from transformers.processing_utils import ProcessorMixin

from qmop.compressors.projector import projector_spec
from qmop.configuration_qmop import QMoPConfig


class QMoPProcessor(ProcessorMixin):
    """Image processor, language tokenizer and the tokenizer of the question's tower.

    Args:
        image_processor: of the vision tower.
        tokenizer: of the language model.
        query_tokenizer: of the text tower; absent for methods that read no question.
        visual_tokens: placeholders per image, the projector's `token_count`.
        image_token: the placeholder.
        chat_template: Jinja template of a conversation.
    """

    def __init__(  # noqa: PLR0917 - transformers' own order of arguments
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        query_tokenizer: Any = None,
        visual_tokens: int = 576,
        image_token: str = "<image>",  # noqa: S107 - a placeholder in a prompt, not a secret
        chat_template: str | None = None,
    ) -> None:
        self.visual_tokens = visual_tokens
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, query_tokenizer, chat_template=chat_template)

    @classmethod
    def for_config(cls, config: QMoPConfig, like: QMoPProcessor) -> QMoPProcessor:
        """The processor of another compressor over the same towers: only the placeholder count changes."""
        return cls(
            like.image_processor,
            like.tokenizer,
            like.query_tokenizer,
            visual_tokens=projector_spec(config).token_count(),
            image_token=like.image_token,
            chat_template=like.chat_template,
        )

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **_: Any) -> str:
        """Every placeholder stands for the same number of tokens."""
        del image_inputs, image_idx
        return self.image_token * self.visual_tokens

    def __call__(self, images: Any = None, text: Any = None, query: Any = None, **kwargs: Any) -> BatchFeature:
        """Prepare model inputs.

        Args:
            images: pictures in the order of their placeholders.
            text: one prompt or several, each with one placeholder per picture.
            query: the question of each prompt (one for all its pictures), for text-guided methods.
            kwargs: as for any processor, such as `padding` and `return_tensors`.

        Raises:
            ValueError: if there are not as many questions as prompts.
        """
        prompts = [text] if isinstance(text, str) else list(text or [])
        batch = super().__call__(images=images, text=prompts, **kwargs)
        if query is not None and self.query_tokenizer is not None:
            questions = [query] if isinstance(query, str) else list(query)
            if len(questions) != len(prompts):
                raise ValueError(
                    f"query has {len(questions)} questions for {len(prompts)} prompts: pass one per prompt"
                )
            tokens = self.query_tokenizer(questions, padding=True, truncation=True, return_tensors="pt")
            batch["query_input_ids"] = tokens["input_ids"]
            batch["query_attention_mask"] = tokens["attention_mask"]
        counts = [prompt.count(self.image_token) for prompt in prompts]
        if any(counts) and any(count != 1 for count in counts):
            batch["image_rows"] = torch.tensor([row for row, count in enumerate(counts) for _ in range(count)])
        return batch

    @property
    def model_input_names(self) -> list[str]:
        """Everything that `__call__` may return."""
        return [*super().model_input_names, "query_input_ids", "query_attention_mask", "image_rows"]


AutoProcessor.register(QMoPConfig, QMoPProcessor, exist_ok=True)
