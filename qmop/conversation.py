"""A conversation about pictures, turn by turn, under a query policy.

Tokens guided by a question are computed for that question. `latest` compresses all pictures anew for each question
and reads the whole conversation again. `sticky` keeps each picture as compressed for the question that it came with,
so that the cache of the turns before stays valid and only new tokens are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from qmop.compressors.base import one_of
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.pixels import shown
from qmop.processing_qmop import QMoPProcessor
from qmop.queries import QueryPolicy, chosen_query


class Conversation:
    """Questions and answers over one growing context.

    Args:
        model: in evaluation mode.
        processor: saved with the model.
        policy: the processor's own when absent.
        generation: settings of `generate`, such as `max_new_tokens`.

    Attributes:
        messages: the turns so far, in the form that chat templates take.
        read: tokens that the language model had to read for the latest question.
    """

    def __init__(
        self,
        model: QMoPForConditionalGeneration,
        processor: QMoPProcessor,
        policy: QueryPolicy | None = None,
        **generation: Any,
    ) -> None:
        self.model, self.processor = model, processor
        self.policy: QueryPolicy = policy or processor.query_policy
        one_of("query_policy", self.policy, QueryPolicy)
        if processor.max_tiles is not None:
            raise ValueError(
                f"max_tiles is {processor.max_tiles}, but a conversation shows whole pictures: leave it out, or use "
                "generate for one question at a time"
            )
        if generation.get("num_beams", 1) != 1:
            raise ValueError(
                f"num_beams is {generation['num_beams']}, but a conversation keeps one cache: leave it at 1"
            )
        self.generation = {"max_new_tokens": 64, **generation}
        self.messages: list[dict[str, Any]] = []
        self.read = 0
        self._pixels: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._forget()

    def _forget(self) -> None:
        """Drop the cache: the next question is read with everything before it."""
        self._cache: DynamicCache | None = None
        self._ids = torch.empty(1, 0, dtype=torch.long, device=self.model.device)
        self._prompt, self._answer = "", ""

    @torch.inference_mode()
    def ask(self, question: str, images: Sequence[Image.Image] = ()) -> str:
        """Answer a question, which may bring pictures along.

        Args:
            question: the words of the turn.
            images: pictures that come with it.

        Raises:
            ValueError: if a picture is a sliver, see `qmop.pixels.shown`; the turn then is not taken.
        """
        question = question.replace(self.processor.image_token, " ")  # words, not placeholders
        pictures = [{"type": "image"} for _ in images]
        turns, pixels, kept = len(self.messages), list(self._pixels), list(self._kept)
        self.messages.append({"role": "user", "content": [*pictures, {"type": "text", "text": question}]})
        try:
            self._see(images)
            answer = self._answered(len(kept))
        except BaseException:  # the turn was not taken: the next question is asked as if this one had not been
            del self.messages[turns:]
            self._pixels, self._kept = pixels, kept
            self._forget()
            raise
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return answer

    def _answered(self, before: int) -> str:
        """The answer to the last turn.

        Args:
            before: how many pictures the turns before it brought.
        """
        text = self.processor.apply_chat_template(self.messages, add_generation_prompt=True, tokenize=False)
        added = self._added(text)
        if added is None:
            self._forget()
            before, added = 0, text
        answer = self._continue(added, self._kept[before:])
        self._prompt, self._answer = text, answer
        return answer

    def _added(self, text: str) -> str | None:
        """What a prompt adds to the cached turns, or None where it has to be read from its beginning."""
        if self.policy != "sticky" or self._cache is None or not text.startswith(self._prompt):
            return None
        rest = text[len(self._prompt) :].lstrip()  # templates set a space before an answer
        return rest[len(self._answer) :] if rest.startswith(self._answer) else None

    def _see(self, images: Sequence[Image.Image]) -> None:
        """Compress new pictures; all of them, unless they stick to their own questions."""
        if images:
            new = self.processor.image_processor(shown(list(images)), return_tensors="pt")["pixel_values"]
            self._pixels += list(new.to(self.model.device).unbind(0))
        if self.policy == "sticky":
            own = chosen_query(self.messages[-1:], "latest")
            self._kept += self._encode(self._pixels[len(self._kept) :], own)
        else:
            self._kept = self._encode(self._pixels, chosen_query(self.messages, self.policy))

    def _encode(self, pixels: list[Tensor], question: str) -> list[Tensor]:
        if not pixels:
            return []
        asked = {name: ids.to(self.model.device) for name, ids in self.processor.query_inputs([question]).items()}
        rows = torch.zeros(len(pixels), dtype=torch.long, device=self.model.device)
        output = self.model.get_image_features(torch.stack(pixels), image_rows=rows, **asked)
        return list(output.pooler_output)

    def _continue(self, text: str, kept: list[Tensor]) -> str:
        """Read a text behind the cached turns, with the tokens of its pictures, and write the answer."""
        tokenizer = self.processor.tokenizer
        ids = torch.cat([self._ids, self._tokens(text, kept)], dim=1)
        cache = DynamicCache(config=self.model.config.text_config) if self._cache is None else self._cache
        self.read = ids.shape[1] - cache.get_seq_length()
        encoded: dict[str, Any] = {}
        if kept:
            encoded["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=kept)}
        written = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            **encoded,
            **self.generation,
        )[:, ids.shape[1] :]
        ended = written[:, -1:] == tokenizer.eos_token_id
        said = written[:, :-1] if ended.all() else written
        self._cache, self._ids = cache, torch.cat([ids, said], dim=1)
        return str(tokenizer.decode(said[0], skip_special_tokens=True)).strip()

    def _tokens(self, text: str, kept: list[Tensor]) -> Tensor:
        """Ids of a text, `(1, L)`, each placeholder repeated for the tokens of its picture."""
        token, pieces = self.processor.image_token, text.split(self.processor.image_token)
        assert len(pieces) == len(kept) + 1, "the template writes one placeholder per picture"
        runs = [token * len(tokens) for tokens in kept]
        whole = "".join(piece + run for piece, run in zip(pieces, [*runs, ""], strict=True))
        ids = self.processor.tokenizer.encode(whole, add_special_tokens=False)
        return torch.tensor([ids], device=self.model.device)
