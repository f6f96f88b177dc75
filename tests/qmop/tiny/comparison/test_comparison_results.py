from __future__ import annotations

import pytest

from qmop.tiny.comparison.results import gather
from qmop.tiny.comparison.rows import ROWS
from tests.qmop.tiny.comparison.conftest import unit
from tests.qmop.tiny.comparison.test_comparison_table import answered


def test_the_digest_is_of_scores_whatever_their_order() -> None:
    found = [answered(unit(name), [1, 0, 1, 0, 1]) for name in ("qmop", "prune")]
    assert gather(found).digest == gather(found[::-1]).digest
    assert gather(found).suite_digest == "s"
    other = [found[0], answered(unit("prune"), [1, 0, 1, 0, 0])]
    assert gather(found).digest != gather(other).digest


def test_runs_that_cannot_be_put_side_by_side_are_refused() -> None:
    with pytest.raises(ValueError, match="no run is finished yet"):
        gather([])
    first = answered(unit("qmop"), [1] * 5)
    for other in (answered(unit("prune"), [1] * 4), answered(unit("prune"), [1] * 5, suite="t")):
        with pytest.raises(ValueError, match="prune @16 #0 answered other items than qmop @16 #0: run both anew"):
            gather([first, other])
    assert ROWS["qmop"].seeds == 6
