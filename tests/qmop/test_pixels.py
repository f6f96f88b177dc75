"""Which pictures are read."""

from __future__ import annotations

import pytest

from qmop.pixels import MAX_ASPECT, is_sliver


@pytest.mark.parametrize("short", [1, 7, 894])
def test_a_sliver_is_what_is_narrower_than_the_limit_either_way(short: int) -> None:
    for long, narrow in ((short * MAX_ASPECT, False), (short * MAX_ASPECT + 1, True)):
        assert is_sliver(long, short) is narrow
        assert is_sliver(short, long) is narrow


def test_nothing_has_no_shape() -> None:
    assert is_sliver(3, 0)
