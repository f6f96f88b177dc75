"""The engine over a QMoP checkpoint: one model, one conversation at a time, tokens out as they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from pipelines.serving.contract import Completion, Job, Prompt, PromptError, VisualUsage
from pipelines.serving.steering import Template
from pipelines.serving.text_stream import Detokenizer, StopText
from qmop import load
from qmop.compressors.mixture import BRANCHES
from qmop.features import CompressedTokens
from qmop.fitting import take_image_inputs
from qmop.modeling_qmop import ImageOutput

# Written language has about four. Single tokens may have more (blanks in a row, unknown words), whole texts do not.
_CHARACTERS_PER_TOKEN = 32
# Scores divided by less overflow; a draw at this temperature already takes the likeliest token, ties aside.
_COLDEST = 1e-5


class QMoPEngine:
    """A loaded checkpoint that answers conversations; `run` belongs to one thread.

    Args:
        model: in evaluation mode.
        processor: that belongs to the model.
    """

    batch_limit = 1

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor, self._template = model, processor, Template(processor)
        self._context = int(model.config.text_config.max_position_embeddings)
        self._most_characters = self._context * _CHARACTERS_PER_TOKEN
        ends = model.generation_config.eos_token_id
        ends = processor.tokenizer.eos_token_id if ends is None else ends
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])
        vision = model.config.vision_config
        self._patches = (vision.image_size // vision.patch_size) ** 2

    @classmethod
    def from_checkpoint(cls, path: str, threads: int) -> QMoPEngine:
        """Load a checkpoint onto the GPU if there is one, else onto the CPU with `threads` threads.

        Raises:
            FileNotFoundError, ValueError: as `qmop.load`.
        """
        torch.set_num_threads(threads)
        model, processor = load(path)
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu"), processor)

    def warm_up_prompt(self) -> Prompt:
        """A question about a grey picture, which takes the way of every other question."""
        side = self._model.config.vision_config.image_size
        question = "what is this"
        content = [{"type": "image"}, {"type": "text", "text": question}]
        picture = Image.new("RGB", (side, side), "grey")
        return Prompt(messages=[{"role": "user", "content": content}], images=[picture], question=question)

    def check(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Refuse texts far beyond the model's context, and those that bring special tokens into the prompt.

        Characters are counted and not tokens, because tokenizing a long text would hold up the model's one thread.

        Raises:
            PromptError: naming what is wrong and the way out.
        """
        texts = [part["text"] for turn in messages for part in turn["content"] if part["type"] == "text"]
        characters = sum(map(len, texts))
        if characters > self._most_characters:
            raise PromptError(
                f"The conversation has {characters} characters, but at most {self._most_characters} are taken, because "
                f"the model reads {self._context} tokens: shorten it."
            )
        self._template.check(messages)

    def run(self, jobs: Sequence[Job]) -> None:
        """Answer the jobs one after the other; one that fails does not touch the next."""
        for job in jobs:
            try:
                job.done(self._answer(job))
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to this job alone
                job.done(error)

    @torch.inference_mode()
    def _answer(self, job: Job) -> Completion:
        inputs = self._inputs(job.prompt)
        length = inputs["input_ids"].shape[1]
        room = self._context - length
        if room < 1:
            raise PromptError(f"The conversation has {length} tokens, but the model reads {self._context}: shorten it.")
        sampling, encoded = job.sampling, self._encode(inputs)
        watch = _Watch(job, Detokenizer(self._decode), self._ends, length)
        with _seeded(sampling.seed):
            self._model.generate(
                **inputs,
                mm_encoder_outputs=None if encoded is None else {"image": encoded},
                max_new_tokens=min(sampling.max_new_tokens, room),
                stopping_criteria=StoppingCriteriaList([watch]),
                **_drawing(sampling.temperature, sampling.top_p),
            )
        watch.flush()
        return Completion(
            finish_reason=watch.finish_reason,
            prompt_tokens=length,
            completion_tokens=watch.count,
            visual=self._visual(None if encoded is None else encoded.compressed),
        )

    def _inputs(self, prompt: Prompt) -> dict[str, Any]:
        text = self._template.render(prompt.messages)
        self._template.require_places(text, len(prompt.images))
        images = list(prompt.images) or None
        inputs = self._processor(images=images, text=[text], query=[prompt.question], return_tensors="pt")
        return dict(inputs.to(self._model.device))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._processor.tokenizer.decode(ids, skip_special_tokens=True))

    def _encode(self, inputs: dict[str, Any]) -> ImageOutput | None:
        """Take the pictures out of the inputs and compress them, so that what was kept can be reported."""
        taken = take_image_inputs(inputs)
        return self._model.get_image_features(**taken) if "pixel_values" in taken else None

    def _visual(self, compressed: CompressedTokens | None) -> VisualUsage:
        method = str(self._model.config.compressor)
        if compressed is None:
            return VisualUsage(method=method)
        counts, weights = compressed.counts_B, compressed.branch_weights_BS
        named = None
        if weights is not None:
            named = dict(zip(BRANCHES, weights.float().mean(dim=0).tolist(), strict=True))
        return VisualUsage(
            method=method,
            visual_tokens=int(counts.sum()),
            visual_tokens_original=self._patches * len(counts),
            branch_weights=named,
        )


class _Watch(StoppingCriteria):
    """Sees every new token: passes its text on, and ends the answer at a stop text or when the client is gone."""

    def __init__(self, job: Job, detokenizer: Detokenizer, ends: frozenset[int], prompt_length: int) -> None:
        self._job, self._detokenizer, self._ends = job, detokenizer, ends
        self._stop = StopText(job.sampling.stop)
        self._seen = self._prompt_length = prompt_length
        self._ended = self._begun = False

    @property
    def count(self) -> int:
        """New tokens so far, the end token included."""
        return self._seen - self._prompt_length

    @property
    def finish_reason(self) -> Literal["stop", "length", "cancelled"]:
        """Why the answer ended, once it has."""
        if self._job.cancelled.is_set():
            return "cancelled"
        return "stop" if self._ended or self._stop.reached else "length"

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Take the latest token; true ends the answer."""
        del scores, kwargs
        new = input_ids[0, self._seen :].tolist()
        self._seen += len(new)
        self._ended = self._ended or not self._ends.isdisjoint(new)
        self._show(self._detokenizer.push(new))
        over = self._ended or self._stop.reached or self._job.cancelled.is_set()
        return torch.full((1,), over, dtype=torch.bool, device=input_ids.device)

    def flush(self) -> None:
        """Let out what was held back."""
        self._show(self._detokenizer.push([], final=True), final=True)

    def _show(self, text: str, *, final: bool = False) -> None:
        text = self._stop.push(text, final=final)
        text = text if self._begun else text.lstrip()
        if text:
            self._begun = True
            self._job.emit(text)


def _drawing(temperature: float, top_p: float) -> dict[str, Any]:
    if temperature < _COLDEST:
        return {"do_sample": False}
    # 0 and 1.0 switch off what transformers or the checkpoint would fill in (50 likeliest tokens, a penalty): a draw is
    # from the model's own distribution, cut by nothing but what was asked for.
    drawn = {"do_sample": True, "temperature": temperature, "top_p": top_p}
    return drawn | {"top_k": 0, "repetition_penalty": 1.0}


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Draw from the seed's own stream, and leave the process's stream as it was."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
