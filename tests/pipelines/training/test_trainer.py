"""Two-stage training for real: Ray Data, Ray Train, DeepSpeed, two processes."""

import io
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image
from safetensors.torch import load_file, save_file

import qmop
from cluster.failures import JobFailedError
from cluster.holding import HeldError, held
from cluster.progress import Progress
from jobs.recipes_reader import parse_recipe
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
from pipelines.training.exports import read_card
from pipelines.training.lora import LoraRecipe
from pipelines.training.recipe import StageRecipe, TrainRecipe
from pipelines.training.trainer import train
from tests.pipelines.training.grounds import ground_in
from tests.pipelines.training.killing import notes

pytestmark = pytest.mark.pipeline


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
    _require_frozen_parts_untouched(ground / "base", *result.exports)
    assert qmop.load(result.exports[0])[1].visual_tokens == 48
    assert qmop.load(result.exports[2])[1].visual_tokens == 16
    assert read_card(result.exports[2]).recipe_digest == asked.digest
    steps = notes(ground / "run", "step")
    assert [note["step"] for note in steps] == [1, 2, 1, 2, 3, 4]
    assert (ground / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((ground / "run" / "tensorboard").rglob("events.out.tfevents.*"))
    assert all(abs(sum(note["branch_weights"]) - 1) < 1e-5 for note in steps[2:])
    assert [note["temperature"] for note in steps[2:]] == sorted((n["temperature"] for n in steps[2:]), reverse=True)
    left = ground / "run" / "checkpoints" / f".qmop-tmp-{'0' * 32}"
    left.write_bytes(b"of a killed process")
    again = train(asked, Progress())
    assert not left.exists()
    assert (again.exports, again.trained) == (result.exports, False)
    other = replace(asked, seed=1)
    with pytest.raises(ValueError, match=r"another recipe \(seed: 0 -> 1\)") as refused:
        train(other, Progress())
    recommended = str(refused.value).rsplit(": ", 1)[-1].split()
    assert recommended == ["--allow_changes", "seed"]
    read: TrainRecipe = parse_recipe("qmop train", "", TrainRecipe, ["--corpus", "c", "--output", "o", *recommended])
    assert train(replace(other, allow_changes=read.allow_changes), Progress()).exports == result.exports


def _require_frozen_parts_untouched(*folders: str | Path) -> None:
    """Bit for bit: stage 1 moves the connector and no router, stage 2 projector, router and language model."""
    base, aligned, _, tuned = (qmop.load(folder)[0].state_dict() for folder in folders)
    moved = {name for name, value in base.items() if not torch.equal(value, aligned[name])}
    assert moved == {name for name in base if "multi_modal_projector.connector" in name}
    moved = {name for name, value in aligned.items() if not torch.equal(value, tuned[name])}
    assert not {name for name in moved if "vision_tower" in name or "query_encoder" in name}
    for part in ("multi_modal_projector.connector", "compressor.router", "language_model"):
        assert {name for name in moved if part in name} == {name for name in aligned if part in name}, part


@pytest.fixture(scope="module")
def mixed(ground: Path) -> Path:
    """Conversations without a picture, with one and with three, in one corpus."""
    draw, folder = np.random.default_rng(1), ground / "pictures"
    folder.mkdir()
    records = []
    for number in range(36):
        names = [f"{number}-{place}.png" for place in range((0, 1, 3)[number % 3])]
        for name in names:
            Image.fromarray(draw.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(folder / name)
        asked = "<image>\n" * len(names) + f"how many objects are there in {number} ?"
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "yes"}]
        records.append({"id": str(number), "conversations": turns} | ({"image": names} if names else {}))
    (folder / "mixed.json").write_text(json.dumps(records))
    output = ground / "mixed"
    asked_for = {"annotations": str(folder / "mixed.json"), "images": str(folder), "samples_per_shard": 36}
    prepare(PrepareRecipe(source="llava", output=str(output), **asked_for), Progress())  # type: ignore[arg-type]
    return output


def _curve(ground: Path, mixed: Path, steps: int, zero: int, workers: int) -> list[float]:
    tune = StageRecipe(steps=steps, projector_rate=5e-4, language_rate=5e-4)
    output = ground / f"curve-{steps}-{zero}-{workers}"
    sizes = {"micro_batch": 3, "global_batch": 6, "zero": zero, "workers": workers, "align": StageRecipe(steps=0)}
    train(recipe(ground, corpus=str(mixed), output=str(output), tune=tune, **sizes), Progress())
    return [note["loss"] for note in notes(output, "step")]


@pytest.fixture(scope="module")
def alone(ground: Path, mixed: Path) -> list[float]:
    """Losses of fifty steps in one process."""
    return _curve(ground, mixed, 50, zero=1, workers=1)


@pytest.mark.soak
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_processes_take_the_same_fifty_steps_as_one(
    ground: Path, mixed: Path, alone: list[float], zero: int
) -> None:
    """In fp32, over batches that mix no, one and three pictures; sums are taken in another order."""
    assert len(set(alone)) == 50
    assert _curve(ground, mixed, 50, zero=zero, workers=2) == pytest.approx(alone, rel=1e-4)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("method", "special"),
    [
        ("qmop-elastic", {"options": {"budgets": [16, 4]}}),
        ("recoverable", {"lora": LoraRecipe(rank=4, alpha=8)}),
    ],
)
def test_mixed_batches_step_under_zero_3_with_two_ranks(
    ground: Path, mixed: Path, tmp_path: Path, method: str, special: dict[str, object]
) -> None:
    """With one sample a rank, some steps have pictures on one rank and words alone on the other.

    So they do over a language model that is frozen whole (stage 1) or but for its adapters.
    """
    asked = recipe(
        ground,
        corpus=str(mixed),
        compressor=method,
        zero=3,
        workers=2,
        micro_batch=1,
        global_batch=2,
        align=StageRecipe(steps=6),
        tune=StageRecipe(steps=6, language_rate=1e-3),
        output=str(tmp_path / "run"),
        **special,
    )
    result = train(asked, Progress())
    losses = [note["loss"] for note in notes(tmp_path / "run", "step")]
    assert len(losses) == 12
    assert all(0 < loss < 20 for loss in losses)
    uri = result.exports[-1]
    assert qmop.load(uri)[0].config.compressor == method
    if asked.lora.rank:
        before, after = (qmop.load(folder)[0].model.language_model.state_dict() for folder in (ground / "base", uri))
        changed = {name.rsplit(".", 2)[-2] for name, value in after.items() if not torch.equal(value, before[name])}
        assert changed == set(asked.lora.layers)


@pytest.fixture
def unreadable_word(ground: Path, tmp_path: Path) -> tuple[Path, str]:
    """A base whose text tower yields nothing but NaN where a question has a certain word, and the word."""
    word = "tile"
    shutil.copytree(ground / "base", tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    (place,) = qmop.load(ground / "base")[1].query_tokenizer.encode(word, add_special_tokens=False)
    weights["model.query_encoder.text_tower.text_model.embeddings.token_embedding.weight"][place] = float("nan")
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "base", word


def unreadable(ground: Path, base: Path, output: Path, **changes: object) -> TrainRecipe:
    tune = StageRecipe(steps=6, projector_rate=1e-3, language_rate=1e-3)
    shared = {"base": str(base), "align": StageRecipe(steps=0), "tune": tune, "micro_batch": 1, "global_batch": 4}
    return recipe(ground, output=str(output), **shared, **changes)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_samples_without_a_finite_loss_are_skipped(
    ground: Path, unreadable_word: tuple[Path, str], tmp_path: Path, workers: int
) -> None:
    base, word = unreadable_word
    said = io.StringIO()
    result = train(unreadable(ground, base, tmp_path / "run", on_nan="skip", workers=workers), Progress(stream=said))
    assert all(math.isfinite(note["loss"]) for note in notes(tmp_path / "run", "step"))
    skipped = {key for note in notes(tmp_path / "run", "skipped") for key in note["keys"]}
    asking = {str(sample["__key__"]) for sample in _samples(ground / "corpus") if word in _questions(sample)}
    assert skipped
    assert skipped <= asking
    assert f"these samples were left out: ['{min(skipped)}']" in said.getvalue()
    state = qmop.load(result.exports[-1])[0].model.multi_modal_projector.state_dict()
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.soak
def test_samples_without_a_finite_loss_end_the_run_where_they_are_not_skipped(
    ground: Path, unreadable_word: tuple[Path, str], tmp_path: Path
) -> None:
    base, word = unreadable_word
    asked = unreadable(ground, base, tmp_path / "stops", max_failures=0)
    said = r"FloatingPointError: the loss of tune step \d is nan, because of the slots with \['([\w-]+)'"
    with pytest.raises(JobFailedError, match=said) as stopped:
        train(asked, Progress(stream=io.StringIO()))
    keys = set(re.findall(r"'([^']+)'", str(stopped.value).partition(": look")[0]))
    assert keys <= {str(sample["__key__"]) for sample in _samples(ground / "corpus") if word in _questions(sample)}


def _samples(corpus: Path) -> list[dict[str, Any]]:
    """All samples of a corpus, undecoded."""
    tars = sorted(str(path) for path in corpus.glob("*.tar"))
    return list(wds.WebDataset(tars, shardshuffle=False, empty_check=False))


def _questions(sample: dict[str, Any]) -> list[str]:
    """The words of all questions of a sample."""
    turns = json.loads(sample["json"])["messages"]
    return [word for turn in turns if turn["role"] == "user" for word in turn["text"].split()]


def test_more_processes_than_the_cluster_has_cpus_are_refused_at_once(ground: Path) -> None:
    with pytest.raises(ValueError, match=r"17 CPUs \(8 in|17 CPUs"):
        train(recipe(ground, workers=16, micro_batch=1, output=str(ground / "wide")), Progress())


def test_a_corpus_that_lacks_a_shard_is_refused_before_anything_is_written(ground: Path, tmp_path: Path) -> None:
    shutil.copytree(ground / "corpus", tmp_path / "corpus")
    (tmp_path / "corpus" / "corpus-000001.tar").unlink()
    asked = recipe(ground, corpus=str(tmp_path / "corpus"), output=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"1 of 2 shards .*corpus-000001.tar is missing\): run"):
        train(asked, Progress(stream=io.StringIO()))
    assert not (tmp_path / "run").exists()


def test_an_empty_key_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMOP_STATE_KEY", "")
    with pytest.raises(ValueError, match="QMOP_STATE_KEY is set, but empty"):
        train(TrainRecipe(corpus=str(tmp_path / "c"), output=str(tmp_path / "run")), Progress(stream=io.StringIO()))


def test_a_second_run_into_an_output_is_refused_while_the_first_lives(ground: Path, tmp_path: Path) -> None:
    asked = recipe(ground, output=str(tmp_path / "run"))
    with (
        held(str(tmp_path / "run" / "run.lease.json"), "output", say=pytest.fail),
        pytest.raises(HeldError, match=rf"output {tmp_path}/run is in use by process {os.getpid()} on .*: wait until"),
    ):
        train(asked, Progress(stream=io.StringIO()))
    assert [path.name for path in (tmp_path / "run").glob("[!.]*")] == ["run.lease.json"]
