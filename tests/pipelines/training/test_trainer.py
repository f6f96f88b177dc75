"""Two-stage training for real: Ray Data, Ray Train, DeepSpeed, two processes."""

import io
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image
from safetensors.torch import load_file, save_file

import qmop
from cluster.progress import Progress
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
from pipelines.training.exports import read_card
from pipelines.training.recipe import StageRecipe, TrainRecipe
from pipelines.training.trainer import train
from tests.pipelines.training.grounds import ground_in

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Ray session, a small corpus and a base with random weights."""
    with ground_in(tmp_path_factory.mktemp("training"), samples_per_shard=100) as folder:
        yield folder


def recipe(ground: Path, **changes: object) -> TrainRecipe:
    plain = TrainRecipe(
        corpus=str(ground / "corpus"),
        output=str(ground / "run"),
        base=str(ground / "base"),
        micro_batch=4,
        global_batch=16,
        align=StageRecipe(steps=2),
        tune=StageRecipe(steps=4, language_rate=1e-3, exports=2),
        log_every=1,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_qmop_trains_in_two_stages_and_a_second_run_has_nothing_to_do(ground: Path) -> None:
    asked = recipe(ground)
    result = train(asked, Progress())
    names = [uri.rsplit("/", 1)[-1] for uri in result.exports]
    assert names == ["qmop-16-align-000002", "qmop-16-tune-000002", "qmop-16-tune-000004"]
    _stage_one_changed_the_projector_alone(ground, result.exports[0])
    assert qmop.load(result.exports[0])[1].visual_tokens == 48
    assert qmop.load(result.exports[2])[1].visual_tokens == 16
    assert read_card(result.exports[2]).recipe_digest == asked.digest
    notes = [json.loads(line) for line in (ground / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [note for note in notes if note["kind"] == "step"]
    assert [note["step"] for note in steps] == [1, 2, 1, 2, 3, 4]
    assert (ground / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((ground / "run" / "tensorboard").rglob("events.out.tfevents.*"))
    assert all(abs(sum(note["branch_weights"]) - 1) < 1e-5 for note in steps[2:])
    assert [note["temperature"] for note in steps[2:]] == sorted((n["temperature"] for n in steps[2:]), reverse=True)
    again = train(asked, Progress())
    assert (again.exports, again.trained) == (result.exports, False)
    with pytest.raises(ValueError, match=r"another recipe \(seed: 0 -> 1\)"):
        train(replace(asked, seed=1), Progress())


def _stage_one_changed_the_projector_alone(ground: Path, export: str) -> None:
    before, after = qmop.load(ground / "base")[0].state_dict(), qmop.load(export)[0].state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {name for name in before if "multi_modal_projector.connector" in name}


def test_zero_3_with_one_process_equals_zero_1_with_two(ground: Path) -> None:
    """The loss of a step does not depend on the number of processes, nor on how states are sharded."""
    tune = StageRecipe(steps=3, projector_rate=1e-3, language_rate=1e-3)
    shared = {"compressor": "average_pool", "align": StageRecipe(steps=0), "tune": tune}
    curves = []
    for zero, workers in ((1, 2), (3, 1)):
        output = ground / f"zero{zero}"
        train(recipe(ground, zero=zero, workers=workers, output=str(output), **shared), Progress())
        notes = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        curves.append([note["loss"] for note in notes if note["kind"] == "step"])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert len(set(curves[0])) == 3


def _mixed_corpus(folder: Path) -> Path:
    """Twelve conversations with a picture and twelve without, in one corpus."""
    draw = np.random.default_rng(1)
    records = []
    for number in range(24):
        turns = [{"from": "human", "value": f"is it number {number} ?"}, {"from": "gpt", "value": "yes"}]
        record: dict[str, object] = {"id": str(number), "conversations": turns}
        if number % 2:
            name = f"{number}.png"
            Image.fromarray(draw.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(folder / name)
            turns[0]["value"] = "<image>\n" + turns[0]["value"]
            record["image"] = name
        records.append(record)
    (folder / "mixed.json").write_text(json.dumps(records))
    output = folder / "mixed"
    asked = {"annotations": str(folder / "mixed.json"), "images": str(folder), "samples_per_shard": 24}
    prepare(PrepareRecipe(source="llava", output=str(output), **asked), Progress())  # type: ignore[arg-type]
    return output


@pytest.mark.parametrize(("method", "options"), [("qmop-elastic", {"budgets": [16, 4]}), ("recoverable", {})])
def test_mixed_batches_step_under_zero_3_with_two_ranks(
    ground: Path, tmp_path: Path, method: str, options: dict[str, object]
) -> None:
    """With one sample a rank, some steps have a picture on one rank and words alone on the other."""
    asked = recipe(
        ground,
        corpus=str(_mixed_corpus(tmp_path)),
        compressor=method,
        options=options,
        zero=3,
        workers=2,
        micro_batch=1,
        global_batch=2,
        align=StageRecipe(steps=0),
        tune=StageRecipe(steps=8, language_rate=1e-3),
        output=str(tmp_path / "run"),
    )
    result = train(asked, Progress())
    notes = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [note["loss"] for note in notes if note["kind"] == "step"]
    assert len(losses) == 8
    assert all(0 < loss < 20 for loss in losses)
    moved, _ = qmop.load(result.exports[-1])
    assert moved.config.compressor == method


@pytest.fixture
def unreadable_word(ground: Path, tmp_path: Path) -> tuple[Path, str]:
    """A base whose text tower yields nothing but NaN where a question has a certain word, and the word."""
    word = "texture"
    shutil.copytree(ground / "base", tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    (place,) = qmop.load(ground / "base")[1].query_tokenizer.encode(word, add_special_tokens=False)
    weights["model.query_encoder.text_tower.text_model.embeddings.token_embedding.weight"][place] = float("nan")
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "base", word


def test_samples_without_a_finite_loss_are_skipped_or_end_the_run_by_recipe(
    ground: Path, unreadable_word: tuple[Path, str], tmp_path: Path
) -> None:
    base, word = unreadable_word
    tune = StageRecipe(steps=6, projector_rate=1e-3, language_rate=1e-3)
    shared = {"base": str(base), "align": StageRecipe(steps=0), "tune": tune, "micro_batch": 1, "global_batch": 4}
    said = io.StringIO()
    result = train(recipe(ground, on_nan="skip", output=str(tmp_path / "run"), **shared), Progress(stream=said))
    notes = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(note["loss"]) for note in notes if note["kind"] == "step")
    skipped = {key for note in notes if note["kind"] == "skipped" for key in note["keys"]}
    asking = {sample["__key__"] for sample in _samples(ground / "corpus") if word in str(sample["json"])}
    assert skipped
    assert skipped <= asking
    assert f"these samples were left out: ['{min(skipped)}']" in said.getvalue()
    state = qmop.load(result.exports[-1])[0].model.multi_modal_projector.state_dict()
    assert all(torch.isfinite(value).all() for value in state.values())
    with pytest.raises(Exception, match=r"the loss of tune step \d is nan; in it were"):
        train(recipe(ground, max_failures=0, output=str(tmp_path / "stops"), **shared), Progress(stream=io.StringIO()))


def _samples(corpus: Path) -> list[dict[str, object]]:
    """All samples of a corpus, undecoded."""
    tars = sorted(str(path) for path in corpus.glob("*.tar"))
    return list(wds.WebDataset(tars, shardshuffle=False, empty_check=False))


def test_more_processes_than_the_cluster_has_cpus_are_refused_at_once(ground: Path) -> None:
    with pytest.raises(ValueError, match=r"17 CPUs \(8 in|17 CPUs"):
        train(recipe(ground, workers=16, micro_batch=1, output=str(ground / "wide")), Progress())
