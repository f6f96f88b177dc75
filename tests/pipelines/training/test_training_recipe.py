from dataclasses import replace

import pytest

from pipelines.training.recipe import StageRecipe, TrainRecipe, compressor_options

PLAIN = TrainRecipe(corpus="c", output="o")


def test_a_batch_that_the_workers_cannot_share_is_refused_with_the_fitting_multiple() -> None:
    with pytest.raises(ValueError, match=r"global_batch is 32, but 3 workers .* choose a multiple of 48"):
        TrainRecipe(corpus="c", output="o", workers=3)


def test_accumulation_makes_up_the_global_batch() -> None:
    recipe = replace(PLAIN, workers=2, micro_batch=4, global_batch=32)
    assert recipe.accumulation == 4
    assert recipe.accumulation * recipe.micro_batch * recipe.workers == recipe.global_batch


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
    assert (
        len(
            {
                replace(PLAIN, **{name: value}).digest
                for name, value in (("seed", 1), ("tokens", 9), ("zero", 3), ("options", {"top_k": 1}))
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
