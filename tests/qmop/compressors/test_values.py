from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qmop.compressors.values import divisor, finite, is_whole, whole

WRONG_KINDS = (2.0, 1.5, True, "2", None, [2], math.nan, torch.tensor(2.0))


def test_whole_numbers_come_back_as_ints_and_name_their_bounds() -> None:
    assert [whole("k", value, "x") for value in (1, np.int64(3), torch.tensor(2))] == [1, 3, 2]
    assert type(whole("k", np.int64(3), "x")) is int
    assert (whole("k", 0, "x", least=0), whole("k", 4, "x", most=4)) == (0, 4)
    with pytest.raises(ValueError, match=r"^k is 0, but it counts patches: choose 1 or more$"):
        whole("k", 0, "it counts patches")
    with pytest.raises(ValueError, match=r"^k is 5, but it counts patches: choose 1 to 4$"):
        whole("k", 5, "it counts patches", most=4)


@pytest.mark.parametrize("value", WRONG_KINDS, ids=repr)
def test_what_is_no_whole_number_is_told_so(value: object) -> None:
    assert not is_whole(value)
    with pytest.raises(ValueError, match="but it counts patches: choose a whole number, 0 or more"):
        whole("k", value, "it counts patches", least=0)
    with pytest.raises(ValueError, match="which does not divide the width 16: choose a divisor"):
        divisor("k", value, "the width", 16)


def test_finite_numbers_are_neither_words_nor_switches() -> None:
    assert all(map(finite, (0, -2, 0.5, np.float32(0.5))))
    assert not any(map(finite, (math.nan, math.inf, -math.inf, "1", True, None, (1,))))


def test_divisors_divide() -> None:
    assert [divisor("heads", heads, "the width", 16) for heads in (1, 4, 16)] == [1, 4, 16]
    for heads in (0, -4, 5, 32):
        with pytest.raises(
            ValueError, match=f"^heads is {heads}, which does not divide the width 16: choose a divisor"
        ):
            divisor("heads", heads, "the width", 16)
