"""A checkpoint looked at once more for the report: what an answer takes, and what is kept of a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from qmop.answering import prompt
from qmop.drawing import GAP, LINE, SIDE
from qmop.profiler import Profile, profile
from qmop.visualize import explain

ROUNDS = 5
_QUALITY = 85


def timed(
    model: Any, processor: Any, images: Sequence[Image.Image], questions: Sequence[str], *, rounds: int = ROUNDS
) -> Profile:
    """Time the stages of answering these questions in one batch.

    Args:
        model: in evaluation mode, on the device that is to be timed.
        processor: saved with the model.
        images: one per question.
        questions: words, without placeholders.
        rounds: how often, after a warm-up.

    Raises:
        ValueError: if there is nothing to time.
    """
    prompts = [prompt(processor, question) for question in questions]
    batch = processor(
        images=list(images), text=prompts, query=list(questions), padding=True, padding_side="left", return_tensors="pt"
    )
    return profile(model, batch.to(model.device), rounds=rounds)


def drawing(model: Any, processor: Any, image: Image.Image, question: str) -> bytes | None:
    """What a method did to a picture, as WebP: kept patches, heat, branch weights; None where it shows nothing of it.

    Raises:
        ValueError: if the model's projector is none of ours.
    """
    compressor = model.model.multi_modal_projector.compressor
    panels = explain(model, processor, image, question)
    width = compressor.grid * max(1, SIDE // compressor.grid) + GAP
    if panels.width <= width + GAP:  # the picture alone
        return None
    # The page shows the picture and says which method was asked what, so that both are cut off.
    panels = panels.crop((width, LINE + GAP, *panels.size))
    sink = io.BytesIO()
    panels.save(sink, format="WEBP", quality=_QUALITY)
    return sink.getvalue()
