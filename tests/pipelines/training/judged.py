"""What tests of validation share: a run's exports without weights, and answers without a model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.training.exports import CARD, CheckpointCard
from pipelines.training.plans import export_uris
from pipelines.training.recipe import StageName, StageRecipe, TrainRecipe
from pipelines.training.validation_recipe import ValidationRecipe
from qmop.vtcbench.records import Record


def run_in(folder: Path, *, align: int = 0, tune: int = 4, **validation: Any) -> TrainRecipe:
    """A run with an export after every step of its stages."""
    return TrainRecipe(
        corpus="c",
        output=str(folder),
        compressor="average_pool",
        align=StageRecipe(steps=align, exports=max(1, align)),
        tune=StageRecipe(steps=tune, exports=tune),
        validation=ValidationRecipe(**{"every": 1, **validation}),
    )


def export_of(recipe: TrainRecipe, step: int, *, stage: StageName = "tune", digest: str = "") -> dict[str, Any]:
    """Make an export of no weights; the note of it."""
    uri = export_uris(recipe, stage)[step]
    name = uri.rsplit("/", 1)[-1]
    digest = digest or f"digest of {name}"
    Path(uri).mkdir(parents=True, exist_ok=True)
    Path(uri, "weights").write_bytes(b"weights")
    card = CheckpointCard(
        name=name,
        digest=digest,
        stage=stage,
        step=step,
        compressor="average_pool",
        tokens=16,
        visual_tokens=16,
        seed=0,
        recipe_digest="r",
        corpus_digest="c",
        files={"weights": (7, hashlib.sha256(b"weights").hexdigest())},
        versions={},
    )
    Path(uri, CARD).write_text(json.dumps(asdict(card)))
    return {"kind": "export", "name": name, "digest": digest, "stage": stage, "step": step}


def there(recipe: TrainRecipe, stage: StageName = "tune") -> list[int]:
    """Steps whose exports are there."""
    return [step for step, uri in export_uris(recipe, stage).items() if Path(uri, CARD).exists()]


def records(right: int, of: int = 10, *, dimension: str = "GU") -> list[Record]:
    """So many right answers of so many."""
    facts = {"checkpoint": "d", "label": "l", "method": "m", "budget": 16, "visual_tokens": 16}
    words = {"suite_digest": "suite", "shard": "s", "task": "t", "question": "q", "answer": "a", "prediction": "a"}
    return [
        Record(key=str(at), dimension=dimension, score=float(at < right), parsable=True, **facts, **words)  # type: ignore[arg-type]
        for at in range(of)
    ]
