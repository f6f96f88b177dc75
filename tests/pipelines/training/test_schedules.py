from itertools import pairwise

import pytest

from pipelines.training.recipe import RouterSchedule, StageRecipe
from pipelines.training.schedules import rate_factor, router_state

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


def test_temperature_and_noise_fall_together_and_rest_after_their_share() -> None:
    schedule = RouterSchedule(temperature_start=2.0, temperature_end=0.5, noise_start=1.0, share=0.8)
    assert router_state(0, 100, schedule) == (2.0, 1.0)
    assert router_state(40, 100, schedule) == (pytest.approx(1.25), pytest.approx(0.5))
    assert router_state(80, 100, schedule) == (0.5, 0.0)
    assert router_state(99, 100, schedule) == (0.5, 0.0)
