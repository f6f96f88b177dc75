"""Make the embedded base anew: `python -m qmop.tiny.pretraining --output FOLDER`.

Trains towers, language model and a blind language model on rendered pictures, judges both on a suite of other seeds,
and writes the checkpoint with `base.json`, which records recipe, digests and scores. Every part that is finished is
kept in the work folder and reused.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from qmop.answering import answer
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.tiny.assemble import assemble, save_half, tiny_processor
from qmop.tiny.pretraining.language import LanguageRecipe, Speaker, cache_features, train_language
from qmop.tiny.pretraining.tower import TowerRecipe, Towers, train_towers
from qmop.tiny.pretraining.world import make_world
from qmop.vtcbench.rendered import suite

WORLD_SEED, SUITE_SEED = 7, 1000
BLIND = LanguageRecipe(phases=((1, 400, 64),), captions=False)

_log = logging.getLogger("qmop.tiny")


def judge(model: QMoPForConditionalGeneration, count: int) -> dict[str, float]:
    """Accuracy per task on a fresh suite."""
    processor, right = tiny_processor(model.model.multi_modal_projector.token_count()), defaultdict(list)
    items = list(suite(SUITE_SEED, count))
    for first in range(0, count, 100):
        part = items[first : first + 100]
        pictures = [Image.open(io.BytesIO(rendered.image)).convert("RGB") for rendered in part]
        answers = answer(model, processor, pictures, [rendered.item.question for rendered in part])
        for rendered, told in zip(part, answers, strict=True):
            right[rendered.item.task].append(told.text in rendered.item.answers)
    scores = {task: sum(hits) / len(hits) for task, hits in right.items()}
    return {**scores, "micro": sum(map(sum, right.values())) / count}


def _kept(path: Path, build: Callable[[], nn.Module], fresh: Callable[[], nn.Module]) -> nn.Module:
    """A part from its file, or trained and written there."""
    if not path.is_file():
        state = {name: value.contiguous().clone() for name, value in build().state_dict().items()}
        save_file(state, path)
    part = fresh()
    part.load_state_dict(load_file(path))
    return part.eval()


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished checkpoint")
    parser.add_argument("--work", type=Path, default=Path("runs/base"), help="folder of the finished parts")
    parser.add_argument("--pictures", type=int, default=40_000, help="rendered training pictures")
    parser.add_argument("--items", type=int, default=2_000, help="items of the suite that judges the result")
    wanted = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    wanted.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    tower, language, say = TowerRecipe(), LanguageRecipe(), _log.info
    world = make_world(WORLD_SEED, wanted.pictures)
    towers = _kept(wanted.work / "towers.safetensors", lambda: train_towers(world, tower, say), Towers)
    assert isinstance(towers, Towers)
    speaker = _kept(
        wanted.work / "language.safetensors",
        lambda: train_language(cache_features(towers, world), world, language, say),
        Speaker,
    )
    blind = _kept(wanted.work / "blind.safetensors", lambda: train_language(None, world, BLIND, say), Speaker)
    assert isinstance(speaker, Speaker)
    assert isinstance(blind, Speaker)
    model = assemble(towers, speaker)
    save_half(model, tiny_processor(), wanted.output)
    card = {
        "command": "python -m qmop.tiny.pretraining --output qmop/tiny/weights",
        "model_sha256": hashlib.sha256((wanted.output / "model.safetensors").read_bytes()).hexdigest(),
        "pictures": wanted.pictures,
        "world_seed": WORLD_SEED,
        "tower": asdict(tower),
        "language": asdict(language),
        "suite_seed": SUITE_SEED,
        "items": wanted.items,
        "accuracy": judge(model, wanted.items),
        "blind_accuracy": judge(assemble(towers, blind, blind=True), wanted.items),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (wanted.output / "base.json").write_text(json.dumps(card, indent=2) + "\n")
    _log.info(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
