"""Items of a suite on cached features: how a speaker does, without generating.

An answer is right when every token of it, and the end token, is the likeliest one after those before: what greedy
decoding would have said.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qmop.tiny.pretraining.language import Packed, Speaker, features_of, pack
from qmop.tiny.pretraining.world import Texts
from qmop.vtcbench.items import Item
from qmop.vtcbench.rendered import RenderedItem, questions


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Items with their pictures, `(n, 96, 96, 3)` uint8, and their words as ids."""

    items: list[Item]
    pixels: np.ndarray
    texts: list[Texts]


def make_exam(suite: Iterable[RenderedItem], speaker: Speaker) -> Exam:
    """The items of a suite as arrays."""
    drawn = list(suite)
    return Exam(
        items=[rendered.item for rendered in drawn],
        pixels=np.stack([np.asarray(Image.open(io.BytesIO(rendered.image))) for rendered in drawn]),
        texts=[_texts(rendered.item, speaker) for rendered in drawn],
    )


def _texts(item: Item, speaker: Speaker) -> Texts:
    nothing = np.zeros(0, dtype=np.int16)
    ids = [np.array(speaker.tokenizer.encode(text), dtype=np.int16) for text in (item.question, item.answers[0])]
    return Texts(caption=nothing, short=nothing, questions=(ids[0],), answers=(ids[1],), focus=(item.focus,))


@torch.no_grad()
def sit(speaker: Speaker, exam: Exam, visual: Callable[[slice], Tensor], batch: int = 100) -> np.ndarray:
    """Which items are answered rightly, `(n,)` boolean.

    Args:
        speaker: in evaluation mode.
        exam: the items.
        visual: the visual tokens of a stretch of items, before the connector.
        batch: items at once.
    """
    right = []
    for first in range(0, len(exam.items), batch):
        part = slice(first, first + batch)
        packed = pack(speaker.tokenizer, exam.texts[part], captions=False)
        right.append(told(speaker, visual(part), packed))
    return torch.cat(right).numpy()


def told(speaker: Speaker, tokens_BMC: Tensor, packed: Packed) -> Tensor:
    """Whether every answer token of a row is the likeliest, `(B,)` boolean."""
    guesses = speaker.language.lm_head(speaker.states(tokens_BMC, packed))[:, :-1].argmax(-1)
    asked = packed.weights[:, 1:] > 0
    return ((guesses == packed.ids[:, 1:]) | ~asked).all(1)


def sit_blind(speaker: Speaker, seed: int, count: int) -> dict[str, float]:
    """Accuracy of a speaker that sees one blank token, by task, on as many questions of a suite, with nothing drawn."""
    asked = Counter((family.task, question, answer) for family, question, answer in questions(seed, count))
    items = [
        Item(key=str(number), question=question, answers=(answer,), dimension="GU", task=task)
        for number, (task, question, answer) in enumerate(asked)
    ]
    texts = [_texts(item, speaker) for item in items]
    exam = Exam(items=items, pixels=np.zeros(0), texts=texts)
    right = sit(speaker, exam, lambda part: features_of(None, part, len(items[part])))
    hits: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for item, hit, times in zip(items, right, asked.values(), strict=True):
        totals[item.task] += times
        hits[item.task] += times * bool(hit)
    return {task: hits[task] / total for task, total in totals.items()}


def accuracy(items: list[Item], right: np.ndarray, by: str) -> dict[str, float]:
    """Accuracy for each value of an item's field, and of all under `micro`."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for item, hit in zip(items, right, strict=True):
        groups[str(getattr(item, by))].append(bool(hit))
    return {**{name: float(np.mean(hits)) for name, hits in groups.items()}, "micro": float(np.mean(right))}
