"""A shard's questions, answered in batches of like length; what cannot be answered costs only itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from pipelines.corpus.images import decode_image
from pipelines.evaluation.suspicion import Suspicion, reason_of
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
        cut: whether it ended at the longest answer's length, and not by itself.
    """

    answer: Answer | None
    why: str = ""
    seconds: float = 0.0
    cut: bool = False


class _Watch:
    """What is seen of each row while it is generated.

    Args:
        ends: tokens that end an answer; empty if nothing does.
    """

    def __init__(self, ends: Sequence[int]) -> None:
        self.bad: torch.Tensor | None = None
        """Rows whose logits were not finite at some step, `(B,)`."""
        self.ended: torch.Tensor | None = None
        """Rows that chose to end at some step, `(B,)`; answers are greedy."""
        self._ends = torch.tensor(list(ends))

    def __call__(self, model: Any, args: Any, output: Any) -> None:
        del model, args
        logits = output.logits[:, -1]
        bad = ~torch.isfinite(logits).all(dim=-1)
        self._ends = self._ends.to(logits.device)  # at the first step alone
        ended = torch.isin(logits.argmax(dim=-1), self._ends)
        self.bad = bad if self.bad is None else self.bad | bad
        self.ended = ended if self.ended is None else self.ended | ended


@contextmanager
def _watched(model: Any) -> Iterator[_Watch]:
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    watch = _Watch([] if ends is None else [ends] if isinstance(ends, int) else ends)
    hook = model.register_forward_hook(watch)
    try:
        yield watch
    finally:
        hook.remove()


def batches_of(processor: Any, items: Sequence[RenderedItem], size: int) -> list[list[RenderedItem]]:
    """Items in batches of questions of like length, so that little is padded; the same for the same items."""
    if not items:
        return []
    words = processor.tokenizer([rendered.item.question for rendered in items])["input_ids"]
    order = sorted(range(len(items)), key=lambda place: (len(words[place]), place))
    ordered = [items[place] for place in order]
    return [ordered[first : first + size] for first in range(0, len(ordered), size)]


def answered(
    model: Any, processor: Any, batch: Sequence[RenderedItem], max_new_tokens: int, suspicion: Suspicion | None = None
) -> list[Told]:
    """What comes of a batch, in its order.

    If it fails as a whole, and where logits are not finite, each question concerned is asked once more alone.

    Args:
        model: in evaluation mode.
        processor: its processor.
        batch: what is asked at once.
        max_new_tokens: longest answer.
        suspicion: hears of every failure; one of its own when absent.

    Raises:
        WorkerError: if this process, and no sample, is to blame.
    """
    suspicion = suspicion or Suspicion()
    started = time.monotonic()
    told = _tried(model, processor, batch, max_new_tokens, suspicion)
    seconds = (time.monotonic() - started) / len(batch)
    told = [replace(one, seconds=seconds) for one in told]
    if len(batch) == 1:
        return told
    return [
        one if one.answer is not None else answered(model, processor, [item], max_new_tokens, suspicion)[0]
        for item, one in zip(batch, told, strict=True)
    ]


def _tried(
    model: Any, processor: Any, batch: Sequence[RenderedItem], max_new_tokens: int, suspicion: Suspicion
) -> list[Told]:
    """What comes of one attempt; nothing at all if it fails."""
    try:
        told = _asked(model, processor, batch, max_new_tokens)
    except Exception as error:  # noqa: BLE001 - decoders and models raise whatever they like at a sample
        suspicion.failed(error, [rendered.item.key for rendered in batch])
        return [Told(answer=None, why=reason_of(error))] * len(batch)
    if any(one.answer is not None for one in told):
        suspicion.well()
    return told


def _asked(model: Any, processor: Any, batch: Sequence[RenderedItem], max_new_tokens: int) -> list[Told]:
    pictures = [_picture(rendered.image) for rendered in batch]
    questions = [rendered.item.question for rendered in batch]
    with _watched(model) as watch:
        answers = answer(model, processor, pictures, questions, max_new_tokens=max_new_tokens)
    if watch.bad is None or watch.ended is None:
        return [Told(answer=one) for one in answers]
    return [
        Told(answer=None, why=NOT_FINITE) if bad else Told(answer=one, cut=not ended)
        for one, bad, ended in zip(answers, watch.bad.tolist(), watch.ended.tolist(), strict=True)
    ]


def _picture(data: bytes) -> Image.Image:
    """A picture; whatever its decoder raises is the picture's fault, never the process's."""
    try:
        return decode_image(data)
    except Exception as error:
        raise ValueError(reason_of(error)) from error
