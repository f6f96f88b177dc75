"""Make the embedded base anew: `python -m qmop.tiny.pretraining --output FOLDER`.

Trains towers, language model and a blind language model on rendered pictures, judges both on a suite of other seeds,
and writes the checkpoint with `base.json`, which records recipe, digests and scores. Whatever is finished is kept in
the work folder, and what was interrupted goes on from its last state.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from qmop.tiny.assemble import assemble, save_half, tiny_processor
from qmop.tiny.pretraining.exam import Exam, accuracy, make_exam, sit, sit_blind
from qmop.tiny.pretraining.language import LanguageRecipe, LanguageTask, Speaker, cache_features, features_of
from qmop.tiny.pretraining.loop import Schedule, train
from qmop.tiny.pretraining.tower import TowerRecipe, Towers, TowerTask, relevance_auc, tower_scores
from qmop.tiny.pretraining.world import make_world
from qmop.tiny.pretraining.world_file import load_world, save_world
from qmop.vtcbench.dimensions import FAMILIES
from qmop.vtcbench.rendered import suite

WORLD_SEED, SUITE_SEED, PROGRESS_SEED = 7, 1000, 2000
BLIND = LanguageRecipe(schedule=Schedule(steps=300, learning_rate=2e-3), phases=((1.0, 1, 24),), captions=0.0)
BLIND_QUESTIONS = 4_000
"""For each task family."""
_PROGRESS_ITEMS = 400
_SHOWN_TO_JUDGE = 200

_log = logging.getLogger("qmop.tiny")
Part = TypeVar("Part", bound=nn.Module)


def judged(speaker: Speaker, exam: Exam, features: np.ndarray | None) -> dict[str, dict[str, float]]:
    """Accuracy by dimension, task and level; by dimension and task on core items alone."""
    right = sit(speaker, exam, lambda part: features_of(features, part, len(exam.items[part])))
    core = [number for number, item in enumerate(exam.items) if item.level == "core"]
    items = [exam.items[number] for number in core]
    return {
        "core_by_dimension": accuracy(items, right[core], "dimension"),
        "core_by_task": accuracy(items, right[core], "task"),
        "by_level": accuracy(exam.items, right, "level"),
    }


def _kept(path: Path, build: Callable[[], Part], fresh: Callable[[], Part]) -> Part:
    """A part from its file, or trained and written there."""
    if not path.is_file():
        save_file({name: value.contiguous().clone() for name, value in build().state_dict().items()}, path)
    part = fresh()
    part.load_state_dict(load_file(path))
    return part.eval()


class _Making:
    """The parts of the base in their order, each kept in the work folder."""

    def __init__(self, work: Path, pictures: int, items: int) -> None:
        self.work, self.items = work, items
        kept = work / f"world-{WORLD_SEED}-{pictures}.npz"
        if not kept.is_file():
            save_world(make_world(WORLD_SEED, pictures, _log.info), kept)
        self.world = load_world(kept)
        self.tower, self.language = TowerRecipe(), LanguageRecipe()

    def towers(self) -> Towers:
        """Both towers."""
        recipe, world = self.tower, self.world
        rows = np.arange(_SHOWN_TO_JUDGE)

        def build() -> Towers:
            torch.manual_seed(recipe.seed)
            towers = Towers()
            task = TowerTask(towers, world, recipe)
            judge = self._curve("towers", lambda: tower_scores(towers, world, rows))
            train(towers, task.losses, recipe.schedule, _log.info, self.work / "towers", judge=judge)
            return towers

        return _kept(self.work / "towers.safetensors", build, Towers)

    def speaker(self, towers: Towers | None) -> Speaker:
        """The language model; without towers the blind one."""
        recipe = BLIND if towers is None else self.language
        name = "blind" if towers is None else "language"

        def build() -> Speaker:
            torch.manual_seed(recipe.seed)
            speaker = Speaker()
            features = self._features(towers, "world", self.world.pixels)
            exam = make_exam(suite(PROGRESS_SEED, _PROGRESS_ITEMS, ("core",)), speaker)
            shown = self._features(towers, "progress", exam.pixels)
            task = LanguageTask(speaker, features, self.world, recipe)
            judge = self._curve(name, lambda: judged(speaker, exam, shown)["core_by_dimension"])
            train(speaker, task.losses, recipe.schedule, _log.info, self.work / name, judge=judge)
            return speaker

        return _kept(self.work / f"{name}.safetensors", build, Speaker)

    def scores(self, speaker: Speaker, towers: Towers | None) -> dict[str, dict[str, float]]:
        """Of a finished speaker, on the suite that judges."""
        exam = make_exam(suite(SUITE_SEED, self.items), speaker)
        return judged(speaker, exam, self._features(towers, "exam", exam.pixels))

    def relevance(self, towers: Towers) -> float:
        """How well likeness to the question finds the asked-for patches."""
        exam = make_exam(suite(SUITE_SEED, self.items), Speaker())
        texts = exam.texts
        return relevance_auc(towers, exam.pixels, [t.questions[0] for t in texts], [t.focus[0] for t in texts])

    def seconds(self, name: str) -> float:
        """CPU seconds that training a part took, over all processes that worked on it."""
        return max((point["cpu_seconds"] for point in self.curve(name)), default=0.0)

    def curve(self, name: str) -> list[dict[str, float]]:
        """How good a part was whenever it was judged, at 144 tokens even while it is shown fewer."""
        path = self.work / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def _curve(self, name: str, score: Callable[[], dict[str, float]]) -> Callable[[int, float], str]:
        def judge(step: int, seconds: float) -> str:
            found = {key: round(value, 4) for key, value in score().items()}
            with (self.work / f"{name}.jsonl").open("a") as curve:
                curve.write(json.dumps({"step": step, "cpu_seconds": round(seconds), **found}) + "\n")
            return f"{name} {_rounded(found)}"

        return judge

    def _features(self, towers: Towers | None, name: str, pixels: np.ndarray) -> np.ndarray | None:
        return None if towers is None else cache_features(towers, pixels, self.work / f"{name}.npy")


def _rounded(scores: dict[str, float]) -> str:
    return " ".join(f"{name} {100 * score:.1f}" for name, score in scores.items())


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished checkpoint")
    parser.add_argument("--work", type=Path, default=Path("runs/base"), help="folder of the finished parts")
    parser.add_argument("--pictures", type=int, default=24_000, help="rendered training pictures")
    parser.add_argument("--items", type=int, default=4_000, help="items of the suite that judges the result")
    wanted = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    wanted.work.mkdir(parents=True, exist_ok=True)
    making = _Making(wanted.work, wanted.pictures, wanted.items)
    towers = making.towers()
    speaker, blind = making.speaker(towers), making.speaker(None)
    model = assemble(towers, speaker)
    save_half(model, tiny_processor(), wanted.output)
    card = {
        "command": "python -m qmop.tiny.pretraining --output qmop/tiny/weights",
        "model_sha256": hashlib.sha256((wanted.output / "model.safetensors").read_bytes()).hexdigest(),
        "pictures": wanted.pictures,
        "world_seed": WORLD_SEED,
        "tower": asdict(making.tower),
        "language": asdict(making.language),
        "suite_seed": SUITE_SEED,
        "items": wanted.items,
        "accuracy": making.scores(speaker, towers),
        "blind_accuracy": sit_blind(blind, SUITE_SEED, BLIND_QUESTIONS * len(FAMILIES)),
        "relevance_auc": making.relevance(towers),
        "curve": {name: making.curve(name) for name in ("towers", "language")},
        "cpu_minutes": {name: round(making.seconds(name) / 60, 1) for name in ("towers", "language", "blind")},
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (wanted.output / "base.json").write_text(json.dumps(card, indent=2) + "\n")
    _log.info(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
