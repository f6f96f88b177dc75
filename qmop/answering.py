"""Questions about pictures, answered in batches: what evaluation, the base's recipe and examples share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from qmop.fitting import take_image_inputs
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor
from qmop.tiles import pictures_of


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer, with what the compressor did to the picture."""

    text: str
    visual_tokens: int
    branch_weights: tuple[float, ...] | None = None


def prompt(processor: QMoPProcessor, question: str, *, images: int = 1) -> str:
    """One question behind its pictures, as the model's prompt."""
    turn = {"role": "user", "content": [*[{"type": "image"}] * images, {"type": "text", "text": question}]}
    return processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)


@torch.inference_mode()
def answer(
    model: QMoPForConditionalGeneration,
    processor: QMoPProcessor,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    *,
    max_new_tokens: int = 8,
    visual_tokens: int | None = None,
) -> list[Answer]:
    """Greedy answers, one per (picture, question).

    Args:
        model: in evaluation mode.
        processor: saved with the model.
        images: one per question.
        questions: words, without placeholders.
        max_new_tokens: longest answer.
        visual_tokens: another budget than the built one, for elastic methods.

    Raises:
        ValueError: if there are not as many pictures as questions.
    """
    if len(images) != len(questions):
        raise ValueError(f"there are {len(images)} images but {len(questions)} questions: pass one question per image")
    if not questions:
        return []
    prompts = [prompt(processor, question) for question in questions]
    asked: dict[str, Any] = {
        "images": list(images),
        "text": prompts,
        "query": list(questions),
        "visual_tokens": visual_tokens,
    }
    batch = processor(**asked, padding=True, return_tensors="pt")
    batch = batch.to(model.device)
    pictured = take_image_inputs(batch)
    encoded = model.get_image_features(**pictured)
    written = model.generate(
        **batch, mm_encoder_outputs={"image": encoded}, max_new_tokens=max_new_tokens, do_sample=False
    )
    texts = processor.tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    compressed = encoded.compressed
    assert compressed is not None, "our own get_image_features always returns what it kept"
    counts, weights = compressed.counts_B, compressed.branch_weights_BS
    if (overview := pictured.get("overview_tiles")) is not None:  # tiles of one picture, weighted alike
        counts = torch.stack([part.sum() for part in counts.split(pictures_of(overview).tolist())])
        weights = None if weights is None else weights[overview.unique()]
    return [
        Answer(
            text=text.strip(),
            visual_tokens=count,
            branch_weights=None if weights is None else tuple(weights[row].tolist()),
        )
        for row, (text, count) in enumerate(zip(texts, counts.tolist(), strict=True))
    ]
