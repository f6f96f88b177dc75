import pytest

from qmop.annealing import RouterSchedule, router_state


def test_temperature_and_noise_fall_together_and_rest_after_their_share() -> None:
    schedule = RouterSchedule(temperature_start=2.0, temperature_end=0.5, noise_start=1.0, share=0.8)
    assert router_state(0, 100, schedule) == (2.0, 1.0)
    assert router_state(40, 100, schedule) == (pytest.approx(1.25), pytest.approx(0.5))
    assert router_state(80, 100, schedule) == (0.5, 0.0)
    assert router_state(99, 100, schedule) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("field", "value", "bounds"),
    [
        ("temperature_start", -1.0, "above 0 and below inf"),
        ("temperature_end", 0.0, "above 0 and below inf"),
        ("temperature_end", float("nan"), "above 0 and below inf"),
        ("noise_start", -0.5, "at least 0 and below inf"),
        ("share", 0.0, "above 0 and at most 1"),
        ("share", 1.5, "above 0 and at most 1"),
    ],
)
def test_a_number_that_makes_no_schedule_is_refused_with_its_bounds(field: str, value: float, bounds: str) -> None:
    with pytest.raises(ValueError, match=rf"^router\.{field} is {value}, but it must be {bounds}$"):
        RouterSchedule(**{field: value})
