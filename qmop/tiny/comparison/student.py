"""One run: a base with another compressor, tuned on cached features, and the answers that it then gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from qmop.annealing import router_state
from qmop.compressors.base import Compressor
from qmop.compressors.elastic import draw_budget
from qmop.compressors.mixture import ALIGN, TUNE, Mixture
from qmop.features import CompressedTokens, Query, VisualFeatures
from qmop.loading import derive, load
from qmop.modeling_qmop import ImageOutput, QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor
from qmop.tiny.base import base_path
from qmop.tiny.comparison.material import Material, Pair, Pairs
from qmop.tiny.comparison.rows import Row, Settings, Unit
from qmop.tiny.comparison.warming import warm
from qmop.tiny.pretraining.loop import Schedule, train
from qmop.tiny.pretraining.world import GRID, PATCHES, focus_mask
from qmop.views import view_of

_IGNORED = -100
_LONGEST_ANSWER = 6


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A batch of pictures with a question each, as a compressor sees them."""

    features: VisualFeatures
    query: Query


class Student(nn.Module):
    """A model whose frozen towers have looked already.

    Args:
        model: with the compressor to be tuned.
        processor: of the same checkpoint.
    """

    def __init__(self, model: QMoPForConditionalGeneration, processor: QMoPProcessor) -> None:
        super().__init__()
        self.model, self.words = model, processor.tokenizer
        self.view = view_of(model.config)
        model.requires_grad_(False)

    @property
    def compressor(self) -> Compressor:
        """The method."""
        return self.model.model.multi_modal_projector.compressor

    def learn(self, *, language: bool) -> None:
        """Let the projector learn, and the language model if wanted; the towers never."""
        inner = self.model.model
        inner.multi_modal_projector.requires_grad_(True)
        for part in (inner.language_model, self.model.lm_head):
            part.requires_grad_(language)

    def images(self, seen: Seen, tokens: int | None = None) -> ImageOutput:
        """What the projector makes of the pictures."""
        compressed: CompressedTokens = self.model.model.multi_modal_projector(seen.features, seen.query, tokens=tokens)
        return ImageOutput(pooler_output=compressed.per_image(), compressed=compressed)

    def loss(self, seen: Seen, pairs: Sequence[Pair], tokens: int | None = None) -> Tensor:
        """Mean cross-entropy over the tokens of the answers."""
        images = self.images(seen, tokens)
        ids, mask, labels = self._prompts(pairs, _shown(images), answered=True)
        output = self.model(
            input_ids=ids, attention_mask=mask, labels=labels, mm_encoder_outputs={"image": images}, use_cache=False
        )
        return output.loss

    @torch.no_grad()
    def answers(self, seen: Seen, pairs: Sequence[Pair]) -> tuple[list[str], CompressedTokens]:
        """Greedy answers to the questions, and what the projector returned."""
        images = self.images(seen)
        assert images.compressed is not None
        ids, mask, _ = self._prompts(pairs, _shown(images), answered=False)
        told = self.model.generate(
            ids,
            attention_mask=mask,
            mm_encoder_outputs={"image": images},
            max_new_tokens=_LONGEST_ANSWER,
            do_sample=False,
        )
        return self.words.batch_decode(told[:, ids.shape[1] :], skip_special_tokens=True), images.compressed

    def _prompts(self, pairs: Sequence[Pair], shown: int, *, answered: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask and labels, padded on the left: begin, user, picture, question, assistant, answer, end."""
        words = self.words
        begin = [words.bos_token_id, words.convert_tokens_to_ids("<user>")]
        picture = [self.model.config.image_token_id] * shown
        assistant = [words.convert_tokens_to_ids("<assistant>")]
        asked = [[*begin, *picture, *pair.question.tolist(), *assistant] for pair in pairs]
        told = [[*pair.answer.tolist(), words.eos_token_id] if answered else [] for pair in pairs]
        length = max(len(question) + len(answer) for question, answer in zip(asked, told, strict=True))
        ids = torch.full((len(pairs), length), words.pad_token_id)
        labels = torch.full_like(ids, _IGNORED)
        for row, (question, answer) in enumerate(zip(asked, told, strict=True)):
            ids[row, length - len(question) - len(answer) :] = torch.tensor(question + answer)
            if answer:
                labels[row, length - len(answer) :] = torch.tensor(answer)
        return ids, (ids != words.pad_token_id).long(), labels


def _shown(images: ImageOutput) -> int:
    """The most tokens that a picture of the batch kept; the model drops the placeholders that others do not need."""
    assert images.compressed is not None
    return int(images.compressed.tokens_BMC.shape[1])


def enrol(settings: Settings, unit: Unit) -> Student:
    """A student before its first step."""
    torch.manual_seed(_number(unit.seed, "start"))
    row = unit.row
    options = {**row.options, **({"seed": unit.seed} if row.seeded else {})}
    return Student(*derive(base_path(settings.base), row.method, unit.tokens, options))


def tune(student: Student, settings: Settings, unit: Unit, material: Material, say: Callable[[str], None]) -> None:
    """What is new by itself (see `warming`), then both stages: the projector alone, then with the language model.

    A row that is not tuned is left as it is.
    """
    if not unit.row.tuned:
        student.eval()
        return
    _warm(student, settings, unit, material.train, say)
    aligned = settings.align_steps if unit.row.aligned else 0
    tuned = settings.align_steps + settings.tune_steps - aligned
    for stage, steps, peak in ((ALIGN, aligned, settings.align_rate), (TUNE, tuned, settings.tune_rate)):
        if not steps:
            continue
        student.learn(language=stage == TUNE)
        lesson = _Lesson(student, settings, unit, material.train, stage=stage, steps=steps)
        train(student, lesson.losses, Schedule(steps=steps, learning_rate=peak, warmup=max(1, steps // 20)), say)
    student.eval()


def _warm(student: Student, settings: Settings, unit: Unit, pairs: Pairs, say: Callable[[str], None]) -> None:
    def batch(step: int) -> tuple[VisualFeatures, Query]:
        drawn = pairs.draw(np.random.default_rng(_number(unit.seed, f"warm/{step}")), settings.batch)
        seen = see(pairs, drawn, student)
        return seen.features, seen.query

    base, _ = load(base_path(settings.base))
    schedule = Schedule(steps=settings.warm_steps, learning_rate=settings.warm_rate)
    warm(student.model.model.multi_modal_projector, base.model.multi_modal_projector.connector, batch, schedule, say)


class _Lesson:
    """The loss of every step of a stage, a function of seed and step alone."""

    def __init__(
        self, student: Student, settings: Settings, unit: Unit, pairs: Pairs, *, stage: int, steps: int
    ) -> None:
        self._student, self._settings, self._unit, self._pairs = student, settings, unit, pairs
        self._stage, self._steps = stage, steps
        if isinstance(method := student.compressor, Mixture):
            method.stage = stage

    def losses(self, step: int) -> dict[str, Tensor]:
        """The loss at a step; equal seeds show all rows the same pairs in the same order."""
        draw = _number(self._unit.seed, f"{self._stage}/{step}")
        torch.manual_seed(draw)
        method = self._student.compressor
        if isinstance(method, Mixture) and self._stage == TUNE:
            method.router.anneal(*router_state(step, self._steps, self._unit.row.router), seed=draw)
        pairs = self._pairs.draw(np.random.default_rng(draw), self._settings.batch)
        seen = see(self._pairs, pairs, self._student, self._unit.row)
        tokens = draw_budget(method, self._unit.seed, step) if len(method.training_budgets()) > 1 else None
        return {self._unit.label: self._student.loss(seen, pairs, tokens)}


def see(material: Pairs, pairs: Sequence[Pair], student: Student, row: Row | None = None) -> Seen:
    """Pictures and questions of some pairs as the student's method reads them.

    Args:
        material: that the pairs are from.
        pairs: the batch.
        student: whose method reads.
        row: which may shuffle the questions (the method, not the language model, is told that of the next pair) or
            let an oracle point.
    """
    asked = [pair.question for pair in pairs]
    if row is not None and row.shuffled:
        asked = asked[1:] + asked[:1]
    features = material.sights.rows(student.view, np.array([pair.picture for pair in pairs]))
    if row is not None and row.oracle:
        features.cls_attention_BN = pointed(pairs)
    return Seen(features=features, query=material.questions.rows(asked))


def pointed(pairs: Sequence[Pair]) -> Tensor:
    """Attention that an oracle pays, `(B, 144)`: to one patch of each asked-for cell before a second one, then others.

    Those others, and all where nothing is asked for, come in a random order of the picture's own.
    """
    corner = (np.arange(GRID) % 2)[:, None] * 2 + np.arange(GRID) % 2
    chance = np.stack([np.random.default_rng(pair.picture).random(PATCHES) / 2 for pair in pairs])
    asked = focus_mask([pair.focus for pair in pairs]).numpy() > 0
    return torch.from_numpy(np.where(asked, 4 - corner.ravel() + chance, chance)).float()


def _number(seed: int, what: str) -> int:
    """A seed for one purpose."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}".encode()).digest()[:4], "big")
