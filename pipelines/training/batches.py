"""From samples to tensors: decode beside the trainer, draw one turn, build ids and labels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

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
        dummy: true if no row has an image: one image then runs through the projector and counts for nothing, so that
            every process runs the same modules in every step.
        positions: global positions of the samples, for the ledger.
        keys: of the samples, for the ledger.
        left_out: keys of samples whose prompt, placeholders included, leaves no room for an answer: their rows stand
            without images and targets, so they count for nothing.
    """

    inputs: dict[str, Any]
    labels: Tensor
    dummy: bool
    positions: tuple[int, ...]
    keys: tuple[str, ...]
    left_out: tuple[str, ...] = ()

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

    All images of a sample stand in front of the question that is drawn, in their order: turns are trained singly, and
    each may speak of any of them.

    Args:
        processor: of the model in training; its placeholder count is the projector's.
        seed: of the turn draws.
        max_length: tokens per row; the end of a longer answer is cut off, placeholders never are (see
            `Batch.left_out`).
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
        self._void: Batch | None = None

    def __call__(self, micro: MicroBatch) -> Batch:
        """Build the tensors of a micro-batch, padded on the right."""
        encoded = [image for images in micro.images for image in images]
        pixels = self.pictures.start(encoded or [_blank()])  # in threads, while the text is cut into tokens
        tokens = self.processor.visual_tokens if self.budget is None else self.budget(micro.positions[0])
        turns = [
            draw_turn(sample["messages"], self.seed, position)
            for position, sample in zip(micro.positions, micro.samples, strict=True)
        ]
        rows = [
            self._ids(question, told, len(images), tokens)
            for (question, told), images in zip(turns, micro.images, strict=True)
        ]
        owners = [row for row, images in enumerate(micro.images) for _ in images]
        kept = [place for place, row in enumerate(owners) if rows[row].fits]
        padded, labels = self._pad(rows)
        inputs: dict[str, Any] = dict(padded)
        if self.budget is not None:
            inputs["visual_tokens"] = tokens
        inputs["pixel_values"] = _selected(pixels(), kept)
        inputs["image_rows"] = torch.tensor([owners[place] for place in kept] or [0])
        inputs |= self.processor.query_inputs([question for question, _ in turns])
        return Batch(
            inputs=inputs,
            labels=labels,
            dummy=not kept,
            positions=tuple(micro.positions),
            keys=tuple(micro.keys),
            left_out=tuple(key for key, row in zip(micro.keys, rows, strict=True) if not row.fits),
        )

    def void(self) -> Batch:
        """A micro-batch that counts for nothing, for a slot without samples: the same modules run for it."""
        if self._void is None:
            self._void = self._nothing()
        return replace(self._void, inputs=dict(self._void.inputs))

    def _nothing(self) -> Batch:
        ids = torch.full((1, 2), self.processor.tokenizer.eos_token_id)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.budget is not None:
            inputs["visual_tokens"] = self.processor.visual_tokens
        inputs |= {"pixel_values": self.pictures([_blank()]), "image_rows": torch.tensor([0])}
        inputs |= self.processor.query_inputs([""])
        return Batch(inputs=inputs, labels=torch.full_like(ids, IGNORED), dummy=True, positions=(), keys=())

    def _ids(self, question: str, told: str, images: int, visual_tokens: int) -> _Row:
        """A row with placeholders for its images; without any, and without answer, where no answer would fit."""
        tokenizer, image_token = self.processor.tokenizer, self.processor.image_token
        question, told = (text.replace(image_token, " ") for text in (question, told))  # words, not placeholders
        asked_text = prompt(self.processor, question, images=images).replace(image_token, image_token * visual_tokens)
        asked = tokenizer.encode(asked_text, add_special_tokens=False)
        if len(asked) >= self.max_length:
            asked = tokenizer.encode(prompt(self.processor, question, images=0), add_special_tokens=False)[
                : self.max_length
            ]
            return _Row(asked, len(asked), fits=False)
        answer = [*tokenizer.encode(told, add_special_tokens=False), tokenizer.eos_token_id]
        return _Row((asked + answer)[: self.max_length], len(asked), fits=True)

    def _pad(self, rows: list[_Row]) -> tuple[dict[str, Tensor], Tensor]:
        length, pad = max(len(row.ids) for row in rows), self.processor.tokenizer.pad_token_id
        ids = torch.full((len(rows), length), pad)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for place, row in enumerate(rows):
            ids[place, : len(row.ids)] = torch.tensor(row.ids)
            mask[place, : len(row.ids)] = 1
            labels[place, row.asked : len(row.ids)] = ids[place, row.asked : len(row.ids)]
        return {"input_ids": ids, "attention_mask": mask}, labels


class _Row(NamedTuple):
    """Tokens of a row, how many of them are the prompt, and whether prompt and a part of the answer fit."""

    ids: list[int]
    asked: int
    fits: bool


def _selected(pixels_BCHW: Tensor, kept: list[int]) -> Tensor:
    """Some of the images, or one of them as a dummy where none is left."""
    return pixels_BCHW if len(kept) == len(pixels_BCHW) else pixels_BCHW[kept or [0]]


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
