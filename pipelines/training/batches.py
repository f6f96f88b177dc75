"""From samples to tensors: decode beside the trainer, draw one turn, build ids and labels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from pipelines.corpus.micro_batches import MicroBatch
from pipelines.training.pictures import Preparer
from qmop.answering import prompt
from qmop.placeholders import IGNORED
from qmop.processing_qmop import QMoPProcessor
from qmop.queries import draw_turn

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch as tensors.

    Attributes:
        inputs: what the model's forward takes.
        labels: `(R, L)`, -100 where a token is no target.
        dummy: true if no sample has an image: one blank image then runs through the projector and counts for
            nothing, so that every process runs the same modules in every step.
        positions: global positions of the samples, for the ledger.
        keys: of the samples, for the ledger.
    """

    inputs: dict[str, Any]
    labels: Tensor
    dummy: bool
    positions: tuple[int, ...]
    keys: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens that the language model sees, without padding; 0 for a void."""
        return int(self.inputs["attention_mask"].sum()) if self.positions else 0

    @property
    def targets(self) -> int:
        """Number of target tokens; the first token of a row never is one."""
        return int((self.labels[:, 1:] != IGNORED).sum())


class Collator:
    """Turns micro-batches of the feed into `Batch`es.

    Args:
        processor: of the model in training; its placeholder count is the projector's.
        seed: of the turn draws.
        max_length: tokens per row; the end of a longer answer is cut off.
        budget: visual tokens per image by the first position of a micro-batch, for methods that draw a budget per
            step; the processor's own number when absent.
        threads: that decode pictures; as many as torch uses when None.
    """

    def __init__(
        self,
        processor: QMoPProcessor,
        *,
        seed: int,
        max_length: int,
        budget: Callable[[int], int] | None = None,
        threads: int | None = None,
    ) -> None:
        self.processor, self.seed, self.max_length, self.budget = processor, seed, max_length, budget
        self.pictures = Preparer(processor.image_processor, threads)

    def __call__(self, micro: MicroBatch) -> Batch:
        """Build the tensors of a micro-batch, padded on the right."""
        encoded = [image for image in micro.images if image is not None]
        pixels = self.pictures.start(encoded or [_blank()])  # in threads, while the text is cut into tokens
        rows, questions, image_rows = [], [], []
        tokens = self.processor.visual_tokens if self.budget is None else self.budget(micro.positions[0])
        for row, (position, image, sample) in enumerate(zip(micro.positions, micro.images, micro.samples, strict=True)):
            question, told = draw_turn(sample["messages"], self.seed, position)
            if image is not None:
                image_rows.append(row)
            rows.append(self._ids(question, told, tokens if image is not None else 0))
            questions.append(question)
        padded, labels = self._pad(rows)
        inputs: dict[str, Any] = dict(padded)
        if self.budget is not None:
            inputs["visual_tokens"] = tokens
        inputs["pixel_values"] = pixels()
        inputs["image_rows"] = torch.tensor(image_rows or [0])
        inputs |= self.processor.query_inputs(questions)
        return Batch(
            inputs=inputs, labels=labels, dummy=not encoded, positions=tuple(micro.positions), keys=tuple(micro.keys)
        )

    def void(self) -> Batch:
        """A micro-batch that counts for nothing, for a slot without samples: the same modules run for it."""
        ids = torch.full((1, 2), self.processor.tokenizer.eos_token_id)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.budget is not None:
            inputs["visual_tokens"] = self.processor.visual_tokens
        inputs |= {"pixel_values": self.pictures([_blank()]), "image_rows": torch.tensor([0])}
        inputs |= self.processor.query_inputs([""])
        return Batch(inputs=inputs, labels=torch.full_like(ids, IGNORED), dummy=True, positions=(), keys=())

    def _ids(self, question: str, told: str, visual_tokens: int) -> tuple[list[int], int]:
        """Ids of a row, with as many placeholders, and how many of them are the prompt."""
        tokenizer, image_token = self.processor.tokenizer, self.processor.image_token
        question, told = (text.replace(image_token, " ") for text in (question, told))  # words, not placeholders
        asked_text = prompt(self.processor, question, with_image=visual_tokens > 0)
        asked_text = asked_text.replace(image_token, image_token * visual_tokens)
        asked = tokenizer.encode(asked_text, add_special_tokens=False)
        answer = [*tokenizer.encode(told, add_special_tokens=False), tokenizer.eos_token_id]
        return (asked + answer)[: self.max_length], min(len(asked), self.max_length)

    def _pad(self, rows: list[tuple[list[int], int]]) -> tuple[dict[str, Tensor], Tensor]:
        length, pad = max(len(ids) for ids, _ in rows), self.processor.tokenizer.pad_token_id
        ids = torch.full((len(rows), length), pad)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for row, (tokens, asked) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            labels[row, asked : len(tokens)] = ids[row, asked : len(tokens)]
        return {"input_ids": ids, "attention_mask": mask}, labels


@lru_cache(maxsize=1)
def _blank() -> bytes:
    """A black picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    return buffer.getvalue()


def ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items, made by a thread up to `depth` items before they are needed."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(next, items, end) for _ in range(depth)]
        while True:
            item = waiting.pop(0).result()
            if item is end:
                return
            waiting.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]
