"""What all runs tune on and are judged by: pictures, questions, and what the frozen towers make of them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from qmop.compressors.base import Compressor
from qmop.loading import derive, load
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.tiny.base import base_path
from qmop.tiny.comparison.rows import Row, Settings
from qmop.tiny.comparison.sights import Questions, Sights
from qmop.tiny.configs import PATCH_SIZE
from qmop.tiny.pretraining.world import World, make_world
from qmop.tiny.pretraining.world_file import load_world, save_world
from qmop.tiny.tokenizer import language_tokenizer
from qmop.views import View, view_of
from qmop.vtcbench.items import Item
from qmop.vtcbench.rendered import RenderedItem
from qmop.vtcbench.suite import SuiteManifest, probe_digest, read_shard, write_suite

_SHARD = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One question about one picture: the picture's number, ids of question and answer, cells that it asks for."""

    picture: int
    question: np.ndarray
    answer: np.ndarray
    focus: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs by picture, and what the towers make of pictures and questions."""

    by_picture: list[list[Pair]]
    sights: Sights
    questions: Questions

    def draw(self, rng: np.random.Generator, count: int) -> list[Pair]:
        """Pairs of different random pictures: unpacked, one question each."""
        rows = rng.choice(len(self.by_picture), size=count, replace=False)
        return [self.by_picture[row][int(rng.integers(len(self.by_picture[row])))] for row in rows]


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything that a run reads.

    Attributes:
        train: what it tunes on.
        exam: what judges it; item i is the one question about picture i.
        items: of the suite.
        suite: its manifest.
    """

    train: Pairs
    exam: Pairs
    items: list[Item]
    suite: SuiteManifest


def make_material(
    settings: Settings, work: Path, say: Callable[[str], None], rows: Sequence[tuple[Row, int]] = ()
) -> Material:
    """Draw what is not drawn yet, let the towers look at what they have not seen yet, and open it all.

    Args:
        settings: of the comparison.
        work: folder that keeps all this.
        say: told about progress.
        rows: and budgets that will run; what their methods read is computed.
    """
    work.mkdir(parents=True, exist_ok=True)
    model, _ = load(base_path(settings.base))
    training = _training(settings, work, say)
    manifest, drawn = _exam(settings, work, say)
    base = base_digest(settings)[:12]
    places = {"train": _world_path(settings, work).stem, "exam": _suite_path(settings, work).name}
    sights = {name: Sights(work / f"sights-{place}-{base}") for name, place in places.items()}
    pixels = {"train": lambda: training.pixels, "exam": lambda: _pixels(drawn)}
    for method, views in _readers(settings, rows):
        for name, seen in sights.items():
            seen.see(model, views, partial(method.picture, patch_size=PATCH_SIZE), pixels[name], say)
    items = [rendered.item for rendered in drawn]
    train_pairs, exam_pairs = _train_pairs(training), _exam_pairs(items)
    questions = _questions(model, [*train_pairs, *exam_pairs])
    return Material(
        train=Pairs(by_picture=train_pairs, sights=sights["train"], questions=questions),
        exam=Pairs(by_picture=exam_pairs, sights=sights["exam"], questions=questions),
        items=items,
        suite=manifest,
    )


def _readers(settings: Settings, rows: Sequence[tuple[Row, int]]) -> list[tuple[Compressor, list[View]]]:
    """Methods that show the tower different pictures, each with the views of all that show it the same."""
    found: dict[str, tuple[Compressor, list[View]]] = {}
    for row, tokens in rows:
        model, _ = derive(base_path(settings.base), row.method, tokens, row.options)
        view = view_of(model.config)
        found.setdefault(view.shown, (model.model.multi_modal_projector.compressor, []))[1].append(view)
    return list(found.values())


def base_digest(settings: Settings) -> str:
    """SHA-256 of the base's weights and of what the renderer draws: all that runs stand on beside their settings."""
    weights = (base_path(settings.base) / "model.safetensors").read_bytes()
    return hashlib.sha256(weights + _renderer().encode()).hexdigest()


@cache
def _renderer() -> str:
    """Changes whenever the renderer does."""
    return probe_digest(0)[:8]


def _world_path(settings: Settings, work: Path) -> Path:
    return work / f"world-{settings.world_seed}-{settings.pictures}-{_renderer()}.npz"


def _suite_path(settings: Settings, work: Path) -> Path:
    return work / f"suite-{settings.suite_seed}-{settings.items}-{_renderer()}"


def _training(settings: Settings, work: Path, say: Callable[[str], None]) -> World:
    """Pictures and questions to tune on."""
    kept = _world_path(settings, work)
    if not kept.is_file():
        save_world(make_world(settings.world_seed, settings.pictures, say), kept)
    return load_world(kept)


def _exam(settings: Settings, work: Path, say: Callable[[str], None]) -> tuple[SuiteManifest, list[RenderedItem]]:
    """The suite that judges."""
    folder = _suite_path(settings, work)
    manifest = write_suite(
        folder, settings.suite_seed, settings.items, _SHARD, lambda done, of: say(f"suite: {done} of {of} items")
    )
    return manifest, [rendered for shard in manifest.shards for rendered in read_shard(folder, shard)]


def _pixels(drawn: Sequence[RenderedItem]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(rendered.image)).convert("RGB")) for rendered in drawn])


def _train_pairs(world: World) -> list[list[Pair]]:
    return [
        [
            Pair(picture=picture, question=question, answer=answer, focus=focus)
            for question, answer, focus in zip(texts.questions, texts.answers, texts.focus, strict=True)
        ]
        for picture, texts in enumerate(world.texts)
    ]


def _exam_pairs(items: Sequence[Item]) -> list[list[Pair]]:
    words = language_tokenizer()

    def ids(text: str) -> np.ndarray:
        return np.array(words.encode(text), dtype=np.int16)

    return [
        [Pair(picture=picture, question=ids(item.question), answer=ids(item.answers[0]), focus=item.focus)]
        for picture, item in enumerate(items)
    ]


def _questions(model: QMoPForConditionalGeneration, pairs: Sequence[Sequence[Pair]]) -> Questions:
    words = language_tokenizer()
    ends = (words.bos_token_id, words.eos_token_id, words.pad_token_id)
    encoder = model.model.query_encoder
    assert encoder is not None, "the tiny base has a text tower"
    return Questions((pair.question for row in pairs for pair in row), encoder, ends)
