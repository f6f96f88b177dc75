from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.training.recipe import StageRecipe, TrainRecipe
from pipelines.training.sight import Sight, global_step, peak_flops, scalars_of, stage_work
from qmop.cost import llava_config

RECIPE = TrainRecipe(corpus="c", output="o", align=StageRecipe(steps=60), tune=StageRecipe(steps=200))
NOTE = {
    "kind": "step",
    "stage": "tune",
    "step": 20,
    "steps": 200,
    "loss": 1.5,
    "samples_per_s": 64.0,
    "data_wait": 0.02,
    "save_wait_s": 0.25,
    "grad_norm": 3.0,
    "rates": {"projector": 1e-3, "language": 5e-4},
    "temperature": 1.8,
    "noise": 0.9,
    "branch_weights": [0.2, 0.3, 0.5],
    "router_entropy": 1.02,
    "tokens": 2000,
    "visual_tokens": 512,
    "seconds": 0.5,
    "targets": 100,
}


class Clock:
    """Stands still until told otherwise."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def note(step: int, stage: str = "tune", **changes: object) -> dict[str, Any]:
    return {**NOTE, "stage": stage, "step": step, "steps": RECIPE.stage(stage).steps, **changes}  # type: ignore[arg-type]


def test_a_note_becomes_numbers_under_the_usual_names() -> None:
    assert scalars_of(NOTE) == {
        "train/loss": 1.5,
        "train/grad_norm": 3.0,
        "train/target_tokens": 100,
        "train/learning_rate/projector": 1e-3,
        "train/learning_rate/language": 5e-4,
        "throughput/samples_per_second": 64,
        "throughput/tokens_per_second": 4000,
        "throughput/visual_tokens_per_second": 1024,
        "time/step_seconds": 0.5,
        "time/data_wait_share": 0.02,
        "time/save_wait_seconds": 0.25,
        "router/temperature": 1.8,
        "router/noise": 0.9,
        "router/entropy": 1.02,
        "router/weight/resampler": 0.2,
        "router/weight/window_pool": 0.3,
        "router/weight/prune": 0.5,
    }


def test_a_note_of_bare_necessities_is_enough() -> None:
    bare = {"stage": "align", "step": 6, "steps": 60, "loss": 2.0}
    seen = Sight(RECIPE).see(bare)
    assert seen.scalars == {"train/loss": 2.0, "time/eta_seconds": 0.0}
    assert seen.line == "align step 6/60  loss 2.000  ETA 0:00:00"


def test_the_second_stage_goes_on_where_the_first_ended() -> None:
    assert [global_step(RECIPE, "align", 60), global_step(RECIPE, "tune", 1)] == [60, 61]
    alone = replace(RECIPE, align=StageRecipe(steps=0))
    assert global_step(alone, "tune", 1) == 1


def test_the_line_says_what_a_person_wants_to_know() -> None:
    seen = Sight(RECIPE).see(NOTE)
    assert seen.step == 80
    assert seen.line == (
        "tune step 20/200  loss 1.500  64 samples/s  4,000 tokens/s  data wait 2 %  "
        "branches 0.20/0.30/0.50  ETA 0:01:30"
    )


def test_time_left_follows_the_wall_clock_with_saves_and_without_a_restart() -> None:
    clock = Clock()
    sight = Sight(RECIPE, clock)

    def left(step: int) -> float:
        return sight.see(note(step)).scalars["time/eta_seconds"]

    assert left(10) == 190 * 0.5  # nothing has been timed yet: the step's own seconds
    clock.now += 20
    assert left(20) == 180 * 2.0
    clock.now += 20
    assert left(40) == pytest.approx(160 * 40 / 30)
    clock.now += 500  # a worker died, and the run went back
    assert left(30) == 170 * 0.5
    clock.now += 30
    assert left(40) == 160 * 3.0


def test_notes_that_arrive_in_one_bunch_do_not_make_the_end_seem_near() -> None:
    sight = Sight(RECIPE, Clock())
    assert [sight.see(note(step)).scalars["time/eta_seconds"] for step in (1, 2)] == [199 * 0.5, 198 * 0.5]


def test_a_stage_to_come_counts_by_its_own_work() -> None:
    """Tuning costs three passes instead of two, but shows a third of the visual tokens."""
    sight, visual = Sight(RECIPE, Clock()), 32 * 48
    here, there = stage_work(RECIPE, "align"), stage_work(RECIPE, "tune")
    assert (here.visual_tokens, there.visual_tokens) == (48, 16)
    now = here.flops(samples=32, tokens=visual + 320, images=32)
    then = there.flops(samples=32, tokens=32 * 16 + 320, images=32)
    seen = sight.see(note(20, "align", tokens=visual + 320, visual_tokens=visual))
    assert seen.scalars["time/eta_seconds"] == pytest.approx(40 * 0.5 + 200 * 0.5 * then / now)
    plain = Sight(RECIPE, Clock()).see(note(20, "align", tokens=None))
    assert plain.scalars["time/eta_seconds"] == 240 * 0.5


@pytest.mark.parametrize(
    ("device", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_the_peak_of_a_usual_device_is_known(device: str, tera: float) -> None:
    assert peak_flops(device) == tera * 1e12


@pytest.mark.parametrize(
    "device",
    [
        None,
        "cpu",
        "NVIDIA RTX A4000",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "Tesla T4",
    ],
)
def test_of_any_other_device_none_is_made_up(device: str | None) -> None:
    assert peak_flops(device) is None


@pytest.fixture(scope="module")
def llava_7b(tmp_path_factory: pytest.TempPathFactory) -> TrainRecipe:
    """LLaVA-1.5-7B without weights."""
    folder = tmp_path_factory.mktemp("llava")
    llava_config("mlp", 576).save_pretrained(folder)
    return replace(
        RECIPE,
        base=str(folder),
        compressor="mlp",
        tokens=576,
        precision="bf16",
        workers=8,
        micro_batch=16,
        global_batch=128,
    )


def test_work_at_seven_billion_equals_arithmetic_by_hand(llava_7b: TrainRecipe) -> None:
    """The language model: 6 N (tuned) or 4 N (frozen, with gradients passing) per token, and attention in full."""
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32064 * 4096
    attention = 32 * 2 * 826 * 4096
    for stage, passes in (("align", 2), ("tune", 3)):
        work = stage_work(llava_7b, stage)  # type: ignore[arg-type]
        words_alone = work.flops(samples=1, tokens=826, images=0)
        assert words_alone == 2 * passes * 826 * (linear + attention)
        picture = work.flops(samples=1, tokens=826, images=1) - words_alone
        connector = 576 * (1024 * 4096 + 4096 * 4096)
        assert work.projector == connector
        assert picture == 2 * (work.frozen + 3 * connector)
        assert work.frozen == pytest.approx(0.19e12, rel=0.1)  # a ViT-L/14 at 336: some 190 GMAC


def test_mfu_is_the_share_of_all_devices_peak(llava_7b: TrainRecipe) -> None:
    flops = stage_work(llava_7b, "tune").flops(samples=128, tokens=128 * 826, images=128)
    assert flops == pytest.approx(128 * 34.4e12, rel=0.01)
    seconds = flops / (8 * 989e12) / 0.4
    asked = note(1, tokens=128 * 826, visual_tokens=128 * 576, seconds=seconds, device="NVIDIA H100 80GB HBM3")
    seen = Sight(llava_7b, Clock()).see(asked)
    assert seen.scalars["throughput/mfu"] == pytest.approx(0.4)
    assert "MFU 40 %" in seen.line
    halved = Sight(llava_7b, Clock()).see({**asked, "world": 4})
    assert halved.scalars["throughput/mfu"] == pytest.approx(0.8)


@pytest.mark.parametrize("changes", [{"device": "cpu"}, {"device": None}, {"seconds": None}, {"tokens": None}])
def test_without_peak_or_counts_no_mfu_is_shown(llava_7b: TrainRecipe, changes: dict[str, object]) -> None:
    seen = Sight(llava_7b, Clock()).see(note(1, **{"device": "NVIDIA H200", **changes}))
    assert "throughput/mfu" not in seen.scalars


def test_a_base_that_cannot_be_counted_ends_nothing(tmp_path: Path) -> None:
    lost = replace(RECIPE, base=str(tmp_path / "gone"), precision="bf16")
    seen = Sight(lost, Clock()).see(note(20, "align", device="NVIDIA H200"))
    assert "throughput/mfu" not in seen.scalars
    assert seen.scalars["time/eta_seconds"] == 240 * 0.5
