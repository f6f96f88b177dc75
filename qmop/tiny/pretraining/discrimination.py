"""Does the world tell methods apart? `python -m qmop.tiny.pretraining.discrimination --base FOLDER`.

Connector and language model of a base are tuned for a short while, the same for all, on frozen features reduced in
five ways: not at all, by average pooling, to random patches, to the patches that the class token looks at, and, by an
oracle, to those of the objects that the question asks for. The accuracies that result must lie far enough apart.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qmop.compressors.registry import build_compressor
from qmop.encoders import visual_features
from qmop.features import VisualFeatures
from qmop.loading import load
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.tiny.base import TINY, base_path
from qmop.tiny.configs import vision_config
from qmop.tiny.pretraining.exam import Exam, accuracy, make_exam, sit
from qmop.tiny.pretraining.language import Speaker, pack
from qmop.tiny.pretraining.loop import Schedule, train
from qmop.tiny.pretraining.world import GRID, PATCHES, Texts, World, focus_mask, make_world, normalise
from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.rendered import suite

TUNE_SEED, EXAM_SEED = 77, 7001
METHODS = {
    "uncompressed": "mlp",
    "average_pool": "average_pool",
    "random_tokens": "random_tokens",
    "class_attention": "fastervlm",
}
ORACLE = "oracle_patches"
POOL_LD, POOL_OTHERS, POOL_HOW_MANY, RANDOM_ALL, ORACLE_ALL = 10, 5, 2, 15, 10
"""The bars, in points: what average pooling must lose on LD, and on how many others how much; what random tokens must
lose in all; what the oracle must be ahead of query-blind pruning."""

_log = logging.getLogger("qmop.tiny")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Pictures as a frozen tower sees them: patches (n, 144, C) float16 and class attention (n, 144)."""

    patches: np.ndarray
    attention: np.ndarray

    def rows(self, rows: np.ndarray | slice) -> VisualFeatures:
        """Some of the pictures."""
        patches, attention = (torch.from_numpy(np.array(of[rows])).float() for of in (self.patches, self.attention))
        return VisualFeatures(patches_BNC=patches, cls_attention_BN=attention, grid=(GRID, GRID))


@torch.no_grad()
def look(model: QMoPForConditionalGeneration, pixels: np.ndarray, batch: int = 128) -> Seen:
    """Run the tower once over some pictures."""
    declaration = build_compressor(METHODS["class_attention"], grid=GRID, tokens=1).declaration
    parts = [
        visual_features(model.model.vision_tower, normalise(pixels[first : first + batch]), declaration)
        for first in range(0, len(pixels), batch)
    ]
    return Seen(
        patches=np.concatenate([part.patches_BNC.half().numpy() for part in parts]),
        attention=np.concatenate([part.need("cls_attention_BN").half().numpy() for part in parts]),
    )


def speaker_of(model: QMoPForConditionalGeneration) -> Speaker:
    """Connector and language model of a base, copied."""
    speaker, inner = Speaker(), model.model
    speaker.connector.load_state_dict(inner.multi_modal_projector.connector.state_dict())
    speaker.language.model.load_state_dict(inner.language_model.state_dict())
    speaker.language.tie_weights()
    return speaker.eval()


def reduce(way: str, tokens: int, features: VisualFeatures, focus: list[tuple[int, ...]], seed: int) -> Tensor:
    """Visual tokens before the connector, one way or another."""
    if way == ORACLE:
        return oracle(features.patches_BNC, focus, tokens, seed)
    method = build_compressor(
        METHODS[way], grid=GRID, width=vision_config().hidden_size, tokens=PATCHES if way == "uncompressed" else tokens
    )
    return method(features).tokens_BMC


def oracle(patches_BNC: Tensor, focus: list[tuple[int, ...]], tokens: int, seed: int) -> Tensor:
    """Patches of the asked-for cells, one of each cell before a second one; others by chance where these are few."""
    rng = np.random.default_rng(seed)
    order = rng.random((len(focus), PATCHES)) / 2
    corner = (np.arange(GRID) % 2)[:, None] * 2 + np.arange(GRID) % 2
    order = np.where(focus_mask(focus).numpy() > 0, 4 - corner.ravel() + order, order)
    kept = torch.from_numpy(np.sort(np.argsort(-order, axis=1)[:, :tokens], axis=1))
    return patches_BNC.gather(1, kept[..., None].expand(-1, -1, patches_BNC.shape[-1]))


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A short tuning on unpacked pairs: one picture, one question."""

    world: World
    seen: Seen
    schedule: Schedule
    batch: int
    tokens: int

    def losses(self, speaker: Speaker, way: str) -> Callable[[int], dict[str, Tensor]]:
        """The loss of every step; all ways are shown the same pairs in the same order."""

        def at(step: int) -> dict[str, Tensor]:
            rng = np.random.default_rng((TUNE_SEED, step))
            rows = rng.integers(len(self.world), size=self.batch)
            pairs = [_pair(self.world.texts[row], rng) for row in rows]
            focus = [pair.focus[0] for pair in pairs]
            tokens = reduce(way, self.tokens, self.seen.rows(rows), focus, step)
            return {way: speaker(tokens, pack(speaker.tokenizer, pairs, captions=False))}

        return at


def _pair(texts: Texts, rng: np.random.Generator) -> Texts:
    """One of the questions about a picture."""
    turn = int(rng.integers(len(texts.questions)))
    return Texts(
        caption=texts.caption,
        short=texts.short,
        questions=texts.questions[turn : turn + 1],
        answers=texts.answers[turn : turn + 1],
        focus=texts.focus[turn : turn + 1],
    )


def measure(base: Path, tuning: Tuning, items: int, ways: list[str]) -> dict[str, dict[str, float]]:
    """Accuracy by dimension on core items, in percent, for each way of reducing."""
    model, _ = load(base)
    exam = make_exam(suite(EXAM_SEED, items, ("core",)), speaker_of(model))
    seen = look(model, exam.pixels)
    table = {}
    for way in ways:
        speaker = speaker_of(model)
        train(speaker, tuning.losses(speaker, way), tuning.schedule, _log.info)
        table[way] = scores(speaker, exam, seen, way, tuning.tokens)
        _log.info("%s %s", way, table[way])
    return table


def scores(speaker: Speaker, exam: Exam, seen: Seen, way: str, tokens: int) -> dict[str, float]:
    """Accuracy by dimension and task and in all, in percent."""

    def visual(part: slice) -> Tensor:
        return reduce(way, tokens, seen.rows(part), [text.focus[0] for text in exam.texts[part]], 0)

    right = sit(speaker, exam, visual)
    shares = accuracy(exam.items, right, "task") | accuracy(exam.items, right, "dimension")
    return {name: round(100 * share, 2) for name, share in shares.items()}


def bars(table: dict[str, dict[str, float]]) -> dict[str, bool]:
    """Which of the bars hold."""
    whole, pooled = table["uncompressed"], table["average_pool"]
    lost = {name: whole[name] - pooled[name] for name in DIMENSIONS}
    others = sum(lost[name] >= POOL_OTHERS for name in DIMENSIONS if name != "LD")
    return {
        "average_pool_loses_details": lost["LD"] >= POOL_LD,
        "average_pool_loses_elsewhere": others >= POOL_HOW_MANY,
        "random_tokens_lose": whole["micro"] - table["random_tokens"]["micro"] >= RANDOM_ALL,
        "oracle_leads_blind_pruning": table[ORACLE]["micro"] - table["class_attention"]["micro"] >= ORACLE_ALL,
    }


def main() -> None:
    """Measure and print as JSON; the exit status is 1 where a bar does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=TINY, help="folder of a base; the embedded one when absent")
    parser.add_argument("--tokens", type=int, default=16, help="visual tokens of every way but the uncompressed one")
    parser.add_argument("--pictures", type=int, default=4_000, help="pictures to tune on")
    parser.add_argument("--steps", type=int, default=500, help="steps of tuning")
    parser.add_argument("--batch", type=int, default=32, help="pairs of a step")
    parser.add_argument("--items", type=int, default=2_000, help="core items that judge")
    wanted = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    base = base_path(wanted.base)
    world = make_world(TUNE_SEED, wanted.pictures, _log.info)
    tuning = Tuning(
        world=world,
        seen=look(load(base)[0], world.pixels),
        schedule=Schedule(steps=wanted.steps, learning_rate=6e-4, warmup=20),
        batch=wanted.batch,
        tokens=wanted.tokens,
    )
    table = measure(base, tuning, wanted.items, [*METHODS, ORACLE])
    held = bars(table)
    sys.stdout.write(json.dumps({"points": table, "bars": held}, indent=1) + "\n")
    sys.exit(0 if all(held.values()) else 1)


if __name__ == "__main__":
    main()
