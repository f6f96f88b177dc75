from dataclasses import replace

import pytest

from pipelines.training.recipe import StageRecipe, TrainRecipe, compressor_options

PLAIN = TrainRecipe(corpus="c", output="o")


def test_a_batch_of_broken_micro_batches_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"global_batch is 40, .* choose a multiple of 16"):
        TrainRecipe(corpus="c", output="o", global_batch=40)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_any_number_of_workers_shares_the_slots_of_a_step(workers: int) -> None:
    assert replace(PLAIN, workers=workers, micro_batch=4, global_batch=32).slots == 8


@pytest.mark.parametrize("least", [0, 3])
def test_fewer_workers_than_none_or_more_than_all_are_refused(least: int) -> None:
    with pytest.raises(ValueError, match=rf"min_workers is {least}, but it lies between 1 and workers \(2\)"):
        replace(PLAIN, min_workers=least)


@pytest.mark.parametrize(("steps", "exports", "wanted"), [(10, 2, (5, 10)), (7, 3, (3, 5, 7)), (1, 4, (1,))])
def test_exports_are_evenly_spaced_and_end_with_the_stage(steps: int, exports: int, wanted: tuple[int, ...]) -> None:
    assert StageRecipe(steps=steps, exports=exports).export_steps() == wanted


def test_a_recipe_without_any_step_is_refused() -> None:
    nothing = StageRecipe(steps=0)
    with pytest.raises(ValueError, match="both 0"):
        replace(PLAIN, align=nothing, tune=nothing)


def test_a_stage_without_steps_is_left_out() -> None:
    assert replace(PLAIN, align=StageRecipe(steps=0)).stages == ("tune",)


def test_the_digest_covers_what_shapes_the_result_and_nothing_else() -> None:
    assert replace(PLAIN, output="elsewhere", log_every=1, max_failures=5).digest == PLAIN.digest
    assert replace(PLAIN, workers=7, min_workers=2, zero=3).digest == PLAIN.digest
    assert (
        len(
            {
                replace(PLAIN, **{name: value}).digest
                for name, value in (("seed", 1), ("tokens", 9), ("micro_batch", 8), ("options", {"top_k": 1}))
            }
            | {PLAIN.digest}
        )
        == 5
    )


def test_qmop_is_told_its_stage_and_resting_temperature_and_others_are_not() -> None:
    assert compressor_options(PLAIN, "align")["stage"] == 1
    tuned = compressor_options(replace(PLAIN, options={"router": {"hidden": 8}}), "tune")
    assert tuned["stage"] == 2
    assert tuned["router"] == {"temperature": PLAIN.router.temperature_end, "hidden": 8}
    assert compressor_options(replace(PLAIN, compressor="average_pool"), "tune") == {}


@pytest.mark.parametrize(
    ("field", "value", "bounds"),
    [
        ("max_failures", -5, "at least -1"),
        ("max_length", 0, "at least 1"),
        ("clip", -1.0, "at least 0 and below inf"),
        ("clip", float("nan"), "at least 0 and below inf"),
        ("weight_decay", -3.0, "at least 0 and below inf"),
        ("beta2", 1.5, "at least 0 and below 1"),
        ("beta2", 1.0, "at least 0 and below 1"),
        ("seed", -1, "at least 0 and at most 4294967295"),
        ("seed", 2**32, "at least 0 and at most 4294967295"),
        ("gpu_gib", 0.0, "above 0"),
        ("cpus_per_worker", -1.0, "above 0"),
        ("log_every", 0, "at least 1"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_bounds(field: str, value: float, bounds: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field} is {value}, but it must be {bounds}$"):
        replace(PLAIN, **{field: value})


@pytest.mark.parametrize("stage", ["align", "tune"])
@pytest.mark.parametrize(
    ("field", "value", "bounds"),
    [
        ("projector_rate", -0.05, "at least 0 and at most 1"),
        ("language_rate", float("inf"), "at least 0 and at most 1"),
        ("warmup", 1.0, "at least 0 and below 1"),
        ("steps", -1, "at least 0"),
        ("exports", 0, "at least 1"),
    ],
)
def test_a_stages_number_out_of_range_is_refused_under_its_whole_name(
    stage: str, field: str, value: float, bounds: str
) -> None:
    wrong = StageRecipe(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"^{stage}\.{field} is {value}, but it must be {bounds}$"):
        replace(PLAIN, **{stage: wrong})


def test_values_that_turn_something_off_pass() -> None:
    still = StageRecipe(projector_rate=0.0, language_rate=0.0, warmup=0.0)
    off = replace(PLAIN, clip=0.0, weight_decay=0.0, beta2=0.0, save_every=0, max_failures=-1, tune=still, trackers=())
    assert (off.clip, off.max_failures, off.tune.projector_rate) == (0.0, -1, 0.0)


def test_an_unknown_tracker_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'tensorbord', which is unknown: choose from mlflow, tensorboard, wandb"):
        replace(PLAIN, trackers=("tensorbord",))
