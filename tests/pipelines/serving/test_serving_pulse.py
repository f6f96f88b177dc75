from __future__ import annotations

import pytest

from pipelines.serving.pulse import Pulse


class Clock:
    """Seconds that pass when they are told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pulse(clock: Clock) -> Pulse:
    return Pulse(60, clock)


def end(pulse: Pulse, *fates: str) -> None:
    for fate in fates:
        with pulse.at_work():
            pulse.ended(fate)


@pytest.mark.parametrize(
    ("fates", "well"),
    [
        (["failed"] * 3, True),
        (["failed"] * 4, False),
        (["failed"] * 3 + ["answered", "failed"], True),
        (["failed"] * 3 + ["cancelled", "failed"], True),
        (["failed", "failed", "refused", "failed", "failed"], False),
        (["failed"] * 9 + ["answered"], True),
    ],
)
def test_more_than_three_failures_in_a_row_are_an_ailment(pulse: Pulse, fates: list[str], well: bool) -> None:
    end(pulse, *fates)
    assert (pulse.ailment is None) == well
    if not well:
        assert pulse.ailment == "The model failed on 4 requests in a row; the reasons are in the log."


def test_what_fails_before_the_engine_is_asked_says_nothing_about_it(pulse: Pulse) -> None:
    for _ in range(9):
        pulse.ended("failed")
    assert pulse.ailment is None


def test_an_engine_is_stuck_when_it_gives_no_sign_while_at_work(pulse: Pulse, clock: Clock) -> None:
    with pulse.at_work():
        for sign in (pulse.beat, lambda: pulse.ended("answered"), pulse.beat):
            clock.now += 60
            assert pulse.ailment is None
            sign()
        clock.now += 61
        assert pulse.ailment == "The model gave no sign for 61 s, but stall_timeout_s is 60."
    assert pulse.ailment is None


def test_an_idle_engine_is_well_for_ever(pulse: Pulse, clock: Clock) -> None:
    end(pulse, "answered")
    pulse.beat()
    clock.now += 1e9
    assert pulse.ailment is None
