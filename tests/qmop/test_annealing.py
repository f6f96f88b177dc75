import pytest

from qmop.annealing import RouterSchedule, router_state


def test_temperature_and_noise_fall_together_and_rest_after_their_share() -> None:
    schedule = RouterSchedule(temperature_start=2.0, temperature_end=0.5, noise_start=1.0, share=0.8)
    assert router_state(0, 100, schedule) == (2.0, 1.0)
    assert router_state(40, 100, schedule) == (pytest.approx(1.25), pytest.approx(0.5))
    assert router_state(80, 100, schedule) == (0.5, 0.0)
    assert router_state(99, 100, schedule) == (0.5, 0.0)


def test_a_schedule_refuses_a_temperature_of_nothing() -> None:
    with pytest.raises(ValueError, match=r"router.temperature_end is 0, but it must be above 0"):
        RouterSchedule(temperature_end=0)
