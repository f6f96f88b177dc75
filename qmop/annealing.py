"""How the router's temperature and noise fall over training (open in the paper; linear here).

Free of torch, so that a recipe can be read without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RouterSchedule:
    """How router temperature and Gumbel noise fall over the tuning stage.

    Attributes:
        temperature_start: at the first step.
        temperature_end: from `share` of the steps on, and at inference.
        noise_start: scale of the Gumbel noise at the first step, 0 for none; it ends at 0.
        share: share of the steps over which both fall, at most 1.
    """

    temperature_start: float = 2.0
    temperature_end: float = 0.5
    noise_start: float = 1.0
    share: float = 0.8

    def __post_init__(self) -> None:
        """Refuse numbers that make no schedule.

        Raises:
            ValueError: naming the field, its value and the bounds.
        """
        for name in ("temperature_start", "temperature_end"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"router.{name} is {getattr(self, name)}, but it must be above 0 and below inf")
        if not 0 <= self.noise_start < math.inf:
            raise ValueError(f"router.noise_start is {self.noise_start}, but it must be at least 0 and below inf")
        if not 0 < self.share <= 1:
            raise ValueError(f"router.share is {self.share}, but it must be above 0 and at most 1")


def router_state(step: int, steps: int, schedule: RouterSchedule) -> tuple[float, float]:
    """Temperature and noise scale of the router at a step of the tuning stage, a function of the step alone."""
    span = max(1.0, schedule.share * steps)
    left = max(0.0, 1.0 - step / span)
    temperature = schedule.temperature_end + left * (schedule.temperature_start - schedule.temperature_end)
    return temperature, left * schedule.noise_start
