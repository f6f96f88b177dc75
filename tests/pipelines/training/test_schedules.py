from itertools import pairwise

import pytest

from pipelines.training.recipe import StageRecipe
from pipelines.training.schedules import rate_factor

STAGE = StageRecipe(steps=100, warmup=0.1)


def test_the_rate_rises_then_falls_to_nothing() -> None:
    factors = [rate_factor(step, STAGE) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert all(later > earlier for earlier, later in pairwise(factors[:11]))
    assert factors[10] == 1.0
    assert all(later < earlier for earlier, later in pairwise(factors[10:]))
    assert factors[99] < 0.001


def test_half_way_down_the_cosine_is_half_the_peak() -> None:
    assert rate_factor(55, STAGE) == pytest.approx(0.5)
