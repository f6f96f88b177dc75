from dataclasses import replace

import pytest

from pipelines.training.recipe import TrainRecipe
from pipelines.training.validation_recipe import ValidationRecipe


@pytest.mark.parametrize(("every", "judged"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_every_so_manieth_and_the_last_are_judged(every: int, judged: list[int]) -> None:
    recipe = ValidationRecipe(every=every)
    assert [place for place in range(1, 6) if recipe.judges(place, 5)] == judged


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("every", -1, "at least 0"),
        ("batch", 0, "at least 1"),
        ("time_limit_s", 0, "above 0"),
        ("num_cpus", 0, "above 0"),
    ],
)
def test_a_number_out_of_range_is_named(field: str, value: int, bound: str) -> None:
    with pytest.raises(ValueError, match=rf"validation\.{field} is {value}, but it must be {bound}"):
        ValidationRecipe(**{field: value})  # type: ignore[arg-type]


def test_how_a_run_is_judged_does_not_shape_it() -> None:
    plain = TrainRecipe(corpus="c", output="o")
    assert replace(plain, validation=ValidationRecipe(every=1, keep_exports=3)).digest == plain.digest
