"""What an evaluation harness asks, read: requests as prompts, pictures and options, and the order to answer them in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria

from qmop.pixels import to_rgb

IMAGE = "<image>"
"""How tasks mark the place of a picture in their text."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request, read.

    Attributes:
        prompt: by the processor's chat template, with one placeholder per picture.
        question: the words alone, which text-guided methods read.
        pictures: in the order of their placeholders.
        continuation: what is to be scored, for `loglikelihood`.
        options: the task's `generation_kwargs`, for `generate_until`.
    """

    prompt: str
    question: str
    pictures: tuple[Image.Image, ...]
    continuation: str = ""
    options: dict[str, Any]


def as_pictures(visuals: Any) -> tuple[Image.Image, ...]:
    """What a task's `doc_to_visual` gave, as pictures in RGB.

    Raises:
        ValueError: if something else is among it, such as the path of a video.
    """
    for visual in visuals or ():
        if not isinstance(visual, Image.Image):
            raise ValueError(f"a task shows a {type(visual).__name__}, but only pictures are read: choose image tasks")
    return tuple(to_rgb(visual) for visual in visuals or ())


def conversation(context: str, pictures: int) -> tuple[dict[str, Any], str]:
    """One user turn and its words alone; pictures stand where the text marks them, or else before it.

    Raises:
        ValueError: if the text marks another number of places than there are pictures.
    """
    marked = context.count(IMAGE)
    if marked not in (0, pictures):
        raise ValueError(f"a task marks {marked} places with {IMAGE} but shows {pictures} pictures: correct the task")
    pieces = context.split(IMAGE) if marked else [""] * pictures + [context]
    content: list[dict[str, str]] = []
    for place, piece in enumerate(pieces):
        content += [{"type": "image"}] if place else []
        content += [{"type": "text", "text": piece.strip()}] if piece.strip() else []
    words = " ".join(piece.strip() for piece in pieces if piece.strip())
    return {"role": "user", "content": content}, words


def spaced(prompt: str, continuation: str) -> str:
    """A continuation with a space before it, unless one of the two brings it."""
    apart = not continuation or prompt[-1:].isspace() or continuation[0].isspace()
    return continuation if apart else f" {continuation}"


def kind_of(options: Any) -> str:
    """What tells options apart; equal ones can share a batch."""
    return json.dumps(options, sort_keys=True, default=str)


def batches(kinds: Sequence[str], lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of one kind, long texts first, so that little is padded."""
    groups: dict[str, list[int]] = {}
    for row, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(row)
    for rows in groups.values():
        rows.sort(key=lambda row: -lengths[row])
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def generation_options(task: dict[str, Any], max_new_tokens: int) -> tuple[dict[str, Any], list[str]]:
    """A task's `generation_kwargs` as those of `generate`, and its stop strings; fields for other models are left out.

    Args:
        task: as the task file gives it.
        max_new_tokens: where it names no limit.
    """
    until = task.get("until") or []
    options: dict[str, Any] = {"max_new_tokens": int(task.get("max_new_tokens") or max_new_tokens), "do_sample": False}
    temperature = task.get("temperature") or 0
    if temperature > 0 and task.get("do_sample") is not False:
        options.update(do_sample=True, temperature=temperature)
        options.update({name: task[name] for name in ("top_p", "top_k") if task.get(name) is not None})
    if task.get("num_beams"):
        options["num_beams"] = int(task["num_beams"])
    return options, [stop for stop in ([until] if isinstance(until, str) else until) if stop]


def cut(text: str, until: Sequence[str]) -> str:
    """A text up to the first of the stop strings."""
    ends = [end for stop in until if (end := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


class Until(StoppingCriteria):
    """Ends a row when one of the stop strings stands in what was written.

    Transformers' own stop strings refuse a string that no token of the vocabulary can end with.

    Args:
        tokenizer: of the language model.
        until: stop strings, at least one.
    """

    def __init__(self, tokenizer: Any, until: Sequence[str]) -> None:
        self.tokenizer, self.until, self.written = tokenizer, until, 0
        # A character takes at most four tokens, of one byte each; a few more let words before it be seen whole.
        self.span = 4 * max(map(len, until)) + 4

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """True for rows that have ended; called once for each new token."""
        del scores
        self.written += 1
        tails = self.tokenizer.batch_decode(input_ids[:, -min(self.written, self.span) :], skip_special_tokens=True)
        ended = [any(stop in tail for stop in self.until) for tail in tails]
        return torch.tensor(ended, device=input_ids.device)
