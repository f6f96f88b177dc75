"""A shard's questions, answered in batches of like length; what cannot be answered costs only itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from pipelines.corpus.images import decode_image
from qmop.answering import Answer, answer
from qmop.vtcbench.rendered import RenderedItem

NOT_FINITE = "the model's logits are not finite"


@dataclass(frozen=True, kw_only=True)
class Told:
    """What came of one question.

    Attributes:
        answer: absent if there is none.
        why: there is none.
        seconds: its share of the batch's time.
    """

    answer: Answer | None
    why: str = ""
    seconds: float = 0.0


@dataclass
class _Watch:
    """Rows whose logits were not finite at some step."""

    rows: torch.Tensor | None = field(default=None)

    def __call__(self, model: Any, args: Any, output: Any) -> None:
        del model, args
        bad = ~torch.isfinite(output.logits[:, -1]).all(dim=-1)
        self.rows = bad if self.rows is None else self.rows | bad


@contextmanager
def _watched(model: Any) -> Iterator[_Watch]:
    watch = _Watch()
    hook = model.register_forward_hook(watch)
    try:
        yield watch
    finally:
        hook.remove()


def batches_of(processor: Any, items: Sequence[RenderedItem], size: int) -> list[list[RenderedItem]]:
    """Items in batches of questions of like length, so that little is padded; the same for the same items."""
    words = processor.tokenizer([rendered.item.question for rendered in items])["input_ids"]
    order = sorted(range(len(items)), key=lambda place: (len(words[place]), place))
    ordered = [items[place] for place in order]
    return [ordered[first : first + size] for first in range(0, len(ordered), size)]


def answered(model: Any, processor: Any, batch: Sequence[RenderedItem], max_new_tokens: int) -> list[Told]:
    """What comes of a batch, in its order.

    If it fails as a whole, and where logits are not finite, each question concerned is asked once more alone.
    """
    started = time.monotonic()
    try:
        told = _asked(model, processor, batch, max_new_tokens)
    except (ValueError, RuntimeError, OSError) as error:
        if len(batch) == 1:
            return [Told(answer=None, why=_reason(error), seconds=time.monotonic() - started)]
        told = [Told(answer=None)] * len(batch)
    seconds = (time.monotonic() - started) / len(batch)
    told = [Told(answer=one.answer, why=one.why, seconds=seconds) for one in told]
    if len(batch) == 1:
        return told
    return [
        one if one.answer is not None else answered(model, processor, [item], max_new_tokens)[0]
        for item, one in zip(batch, told, strict=True)
    ]


def _asked(model: Any, processor: Any, batch: Sequence[RenderedItem], max_new_tokens: int) -> list[Told]:
    pictures = [decode_image(rendered.image) for rendered in batch]
    questions = [rendered.item.question for rendered in batch]
    with _watched(model) as watch:
        answers = answer(model, processor, pictures, questions, max_new_tokens=max_new_tokens)
    bad = [False] * len(answers) if watch.rows is None else watch.rows.tolist()
    return [
        Told(answer=None, why=NOT_FINITE) if wrong else Told(answer=one)
        for one, wrong in zip(answers, bad, strict=True)
    ]


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
