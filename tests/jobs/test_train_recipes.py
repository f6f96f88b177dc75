"""The shipped recipes at full size: they parse, say what was published, and fit the machines that they name."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from cluster.progress import Progress
from jobs import train
from jobs.recipes_reader import parse_recipe, shipped
from pipelines.training.dry_run import dry_run
from pipelines.training.exports import FOLDER, export_name
from pipelines.training.memory_needs import GIB
from pipelines.training.recipe import TrainRecipe

FULL = sorted(name for name in shipped() if name.endswith(("-stage1", "-stage2", "-connector")))


def read(name: str) -> TrainRecipe:
    return parse_recipe("qmop train", "", TrainRecipe, ["--config", name])


def on_parts(name: str) -> TrainRecipe:
    """The recipe with parts in place of an export that is not there yet."""
    recipe = read(name)
    if recipe.parts is not None:
        return recipe
    first = read(name.replace("stage2", "stage1"))
    return replace(recipe, base="tiny", language=first.language, vision=first.vision)


def test_all_are_there() -> None:
    pairs = [f"{method}-stage{stage}" for method in ("llava-13b", "llava-7b", "tokenpacker-7b") for stage in (1, 2)]
    assert sorted([*pairs, "visionzip-7b-connector"]) == FULL


@pytest.mark.parametrize("name", FULL)
def test_each_fits_eight_gpus_of_80_gb_and_fills_whole_rounds(name: str) -> None:
    recipe = on_parts(name)
    assert recipe.gpu_gib == 79
    assert recipe.workers == 8
    assert recipe.slots % recipe.workers == 0
    run = dry_run(recipe, gpu_bytes=79 * GIB)
    run.require_fit()
    assert run.machines.nodes == 1


@pytest.mark.parametrize("name", [name for name in FULL if name.endswith(("stage1", "stage2"))])
def test_the_published_schedule(name: str) -> None:
    recipe, aligning = read(name), name.endswith("stage1")
    assert recipe.stages == (("align",) if aligning else ("tune",))
    stage = recipe.stage(recipe.stages[0])
    wanted = (558_128 // 256, 1e-3, 256) if aligning else (665_298 // 128, 2e-5, 128)
    assert (stage.steps, stage.projector_rate, recipe.global_batch) == wanted
    assert stage.language_rate == (0.0 if aligning else 2e-5)
    assert (stage.warmup, recipe.weight_decay, recipe.precision, recipe.max_length) == (0.03, 0.0, "bf16", 2048)


@pytest.mark.parametrize("name", [name for name in FULL if name.endswith("stage2")])
def test_stage_2_starts_from_what_stage_1_exports(name: str) -> None:
    first, second = read(name.replace("stage2", "stage1")), read(name)
    last = first.align.export_steps()[-1]
    exported = f"{first.output}/{FOLDER}/{export_name(first.compressor, first.tokens, 'align', last)}"
    assert exported.endswith(second.base)
    assert (first.compressor, first.tokens, first.options) == (second.compressor, second.tokens, second.options)


def test_a_dry_run_prints_and_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("trained"))
    out = io.StringIO()
    assert train.run(replace(read("llava-7b-stage1"), dry_run=True), Progress(out)) == 0
    assert "| projector: connector | 20,979,712 | 20,979,712 |" in out.getvalue()
    with pytest.raises(ValueError, match=r"stage align on ZeRO-2 needs .* but one has 12\.0"):
        train.run(replace(read("llava-7b-stage1"), dry_run=True, gpu_gib=12.0), Progress(out))
