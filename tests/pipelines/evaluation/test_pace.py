from __future__ import annotations

import pytest

from pipelines.evaluation.pace import Pace, spoken


def test_only_time_in_which_something_runs_counts() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    assert pace.left(10) == ""
    now[0] = 3600.0  # nothing was there to do
    pace.running(True)
    now[0] += 20.0
    pace.running(True)  # a second one beside it
    now[0] += 20.0
    pace.did(20)
    assert pace.left(10) == "about 20 s left"
    pace.running(False)
    now[0] += 7200.0
    assert pace.left(10) == "about 20 s left"
    assert pace.left(0) == ""


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (59.0, "59 s"), (150.0, "2 min"), (5400.0, "1.5 h")])
def test_a_stretch_of_time_is_told_in_its_own_unit(seconds: float, said: str) -> None:
    assert spoken(seconds) == said
