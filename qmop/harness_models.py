"""Models as an evaluation harness drives them: requests in, texts and losses out, in batches with left padding.

Nothing here knows of a harness but the shape of its requests, which is that of lmms-eval.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.utils.logging import tqdm

from qmop.harness import Asked, Until, as_pictures, batches, conversation, cut, generation_options, kind_of, spaced


class PictureModel(ABC):
    """What both models share.

    Args:
        batch_size: requests per pass.
        max_batch_size: the harness passes it along; unused.
        max_new_tokens: where a task names no limit.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for that of the file.
        device: the first accelerator where there is one when absent; one per rank of a distributed run.

    Raises:
        ValueError: for a batch size or dtype that is none.
    """

    is_simple = True  # the harness's word for a model that takes texts and pictures instead of chat messages
    model: Any
    processor: Any
    task_dict: dict[str, Any]
    rank: int

    def __init__(
        self,
        *,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_new_tokens: int = 256,
        dtype: str = "auto",
        device: str | None = None,
    ) -> None:
        super().__init__()
        del max_batch_size
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size!r}, but batches are of a fixed size here: choose 1 or more")
        self.batch_size, self.max_new_tokens = int(batch_size), int(max_new_tokens)
        self.dtype, self.device = as_dtype(dtype), torch.device(device or default_device())

    @abstractmethod
    def encode(self, texts: list[str], asked: Sequence[Asked]) -> dict[str, Any]:
        """Inputs of the model's `generate` and `forward` for texts that begin with the prompts of `asked`."""

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The harness's call: an answer for each request, greedy unless its task sets a temperature."""
        return self._in_batches(requests, self._answers, scored=False)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """The harness's call: for each request the mean loss of its continuation, and whether it is the greedy one.

        The harness's own models return this loss too, and its choice among answers takes the least.
        """
        return self._in_batches(requests, self._losses, scored=True)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """The harness's call for conversations that it steers.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"{len(requests)} requests have several rounds: choose tasks of a single round")

    def _read(self, args: tuple[Any, ...], *, scored: bool) -> Asked:
        """A request's arguments; scoring may go without any document (a choice by itself)."""
        context, second, *document = args
        doc: Any = None
        pictures: tuple[Image.Image, ...] = ()
        if document:
            to_visual, doc_id, task, split = document
            doc = self.task_dict[task][split][doc_id]
            pictures = as_pictures(to_visual(doc))
        message, question = conversation(context, len(pictures))
        prompt = self.processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        continuation = str(second(doc) if callable(second) else second) if scored else ""
        return Asked(
            prompt=prompt,
            question=question,
            pictures=pictures,
            continuation=spaced(prompt, continuation),
            options={} if scored else dict(second),
        )

    def _in_batches(self, requests: Sequence[Any], run: Callable[[list[Asked]], list[Any]], *, scored: bool) -> Any:
        """Results in the order of the requests; the pictures of one batch at a time are in memory."""
        results: list[Any] = [None] * len(requests)
        kinds = ["" if scored else kind_of(request.args[1]) for request in requests]
        lengths = [len(request.args[0]) for request in requests]
        with tqdm(total=len(requests), disable=getattr(self, "rank", 0) != 0, desc="requests") as bar:
            for rows in batches(kinds, lengths, self.batch_size):
                asked = [self._read(requests[row].args, scored=scored) for row in rows]
                for row, result in zip(rows, run(asked), strict=True):
                    results[row] = result
                bar.update(len(rows))
        return results

    @torch.inference_mode()
    def _answers(self, asked: list[Asked]) -> list[str]:
        batch = self.encode([one.prompt for one in asked], asked)
        options, until = generation_options(asked[0].options, self.max_new_tokens)
        if until:
            options["stopping_criteria"] = [Until(self.processor.tokenizer, until)]
        written = self.model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
        texts = self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [cut(text, until).strip() for text in texts]

    @torch.inference_mode()
    def _losses(self, asked: list[Asked]) -> list[tuple[float, bool]]:
        counts = [self._length(one.prompt + one.continuation) - self._length(one.prompt) for one in asked]
        batch = self.encode([one.prompt + one.continuation for one in asked], asked)
        longest, length = max(counts), batch["input_ids"].shape[1]
        logits = self.model(**batch, logits_to_keep=longest + 1, use_cache=False).logits[:, :-1]
        targets = batch["input_ids"][:, length - longest :]
        scores = logits.float().log_softmax(dim=-1).gather(2, targets.unsqueeze(-1)).squeeze(-1)
        hits = logits.argmax(dim=-1) == targets
        # Rows are padded on the left, so that every continuation ends where the batch ends.
        return [
            (-float(row[-count:].mean()), bool(hit[-count:].all())) if count else (0.0, True)
            for row, hit, count in zip(scores, hits, counts, strict=True)
        ]

    def _length(self, text: str) -> int:
        return len(self.processor.tokenizer(text)["input_ids"])

    def _process(self, texts: list[str], asked: Sequence[Asked], **more: Any) -> dict[str, Any]:
        """The processor's batch on the model's device, padded on the left."""
        pictures = [picture for one in asked for picture in one.pictures]
        options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        batch = self.processor(images=pictures or None, text=texts, **more, **options)
        return dict(batch.to(self.device, self.model.dtype))


class CheckpointModel(PictureModel):
    """`qmop`: a checkpoint of ours.

    Args:
        pretrained: folder written by `save_pretrained`.
        visual_tokens: another budget than the built one, for elastic methods.
        shared: see `PictureModel`.
    """

    def __init__(self, *, pretrained: str, visual_tokens: int | None = None, **shared: Any) -> None:
        super().__init__(**shared)
        from qmop.loading import load  # noqa: PLC0415 - this module is imported to list models, before one is wanted

        self.model, self.processor = load(pretrained, dtype=self.dtype)
        self.model.to(self.device)
        self.visual_tokens = visual_tokens

    def encode(self, texts: list[str], asked: Sequence[Asked]) -> dict[str, Any]:
        """See `PictureModel.encode`."""
        return self._process(texts, asked, query=[one.question for one in asked], visual_tokens=self.visual_tokens)


class CompressedModel(PictureModel):
    """`qmop_compress`: a stock LLaVA with a training-free method attached.

    Args:
        pretrained: folder of a `LlavaForConditionalGeneration` and its processor, safetensors only.
        compressor: a training-free method of `qmop.list_compressors()`; the model as it is when absent.
        tokens: visual tokens per image; the method's default when absent.
        text_encoder: folder of the CLIP or SigLIP model of the vision tower, for text-guided methods.
        options: the method's own fields, as a JSON object.
        shared: see `PictureModel`.
    """

    def __init__(
        self,
        *,
        pretrained: str,
        compressor: str | None = None,
        tokens: int | None = None,
        text_encoder: str | None = None,
        options: str = "{}",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        from qmop.surgery import compress  # noqa: PLC0415 - as above

        self.model, self.processor = load_stock(pretrained, self.dtype)
        self.model.to(self.device)
        self.handle = None
        if compressor is not None:
            own = as_fields(options)
            self.handle = compress(self.model, compressor, tokens=tokens, text_encoder=text_encoder, **own)

    def encode(self, texts: list[str], asked: Sequence[Asked]) -> dict[str, Any]:
        """See `PictureModel.encode`."""
        batch = self._process(texts, asked)
        return batch if self.handle is None else {**batch, **self.handle.ask([one.question for one in asked])}


def load_stock(folder: str | Path, dtype: torch.dtype | None) -> tuple[Any, Any]:
    """A stock model and its processor, in evaluation mode; safetensors only, and off this machine alone.

    Raises:
        FileNotFoundError: if the folder is missing or holds no model.
        ValueError: if it holds one of ours.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: PLC0415 - seconds, and not to list

    from qmop.loading import model_family  # noqa: PLC0415 - as above

    if model_family(Path(folder)) == "qmop":
        raise ValueError(f"{folder} holds a qmop model, not a stock LLaVA: choose the harness's model qmop for it")
    options = {"dtype": dtype or "auto", "use_safetensors": True, "local_files_only": True}
    model = AutoModelForImageTextToText.from_pretrained(folder, **options)
    return model.eval(), AutoProcessor.from_pretrained(folder, local_files_only=True)


def as_fields(text: str) -> dict[str, Any]:
    """A method's own fields out of a JSON object.

    Raises:
        ValueError: if the text is none.
    """
    try:
        fields = json.loads(text)
    except json.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise ValueError(f"options is {text!r}: give a JSON object of the method's fields")
    return fields


def as_dtype(name: str) -> torch.dtype | None:
    """A dtype by name; None for `auto`.

    Raises:
        ValueError: if torch has none of that name.
    """
    found = getattr(torch, str(name), None)
    if name != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype is {name!r}: choose auto, float32, bfloat16 or float16")
    return None if name == "auto" else found


def default_device() -> str:
    """The accelerator of this rank, or the CPU."""
    if not torch.accelerator.is_available():
        return "cpu"
    kind = torch.accelerator.current_accelerator()
    return f"{kind.type if kind else 'cpu'}:{os.environ.get('LOCAL_RANK', '0')}"
