"""The notice that a machine of the run is about to be taken away."""

from __future__ import annotations

import time

import ray.train

LOOK_S = 5.0
"""Seconds between two looks; clouds give half a minute and more."""


class Notice:
    """Asks Ray Train now and then whether a machine of the run is being drained, in all processes at the same steps.

    Ray's answer is agreed on by all processes through an actor: too dear for every step, so the first process's clock
    says when, and the step's own sum over processes carries it to the others.
    """

    def __init__(self) -> None:
        self.given, self._looked = False, time.monotonic()

    def due(self, rank: int) -> float:
        """1 if the process of rank 0 finds that it is time; to be summed over all processes."""
        return float(rank == 0 and time.monotonic() - self._looked >= LOOK_S)

    def look(self) -> bool:
        """Ask; a collective call. True the first time that a machine is on its way out."""
        self._looked = time.monotonic()
        before, self.given = self.given, ray.train.get_preemption_info() is not None
        return self.given and not before
