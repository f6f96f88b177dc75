from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Literal

import pytest

from qmop.compressors.base import Declaration, budget, fitting_budgets, in_range, nested_budgets, one_of, stride_of


@pytest.mark.parametrize(
    ("grid", "tokens", "stride"),
    [(24, 576, 1), (24, 144, 2), (24, 64, 3), (24, 36, 4), (24, 16, 6), (24, 4, 12), (24, 1, 24), (12, 16, 3)],
)
def test_strides_of_the_papers_budgets(grid: int, tokens: int, stride: int) -> None:
    assert stride_of(grid, tokens) == stride


@pytest.mark.parametrize("tokens", [0, 2, 25, 100, 145])
def test_budgets_without_a_stride_name_those_with_one(tokens: int) -> None:
    with pytest.raises(ValueError, match=f"tokens is {tokens}.* only into 576, 144, 64, 36, 16, 9, 4, 1 tokens"):
        stride_of(24, tokens)


def test_a_fixed_budget_takes_itself_or_nothing() -> None:
    assert budget(16, None, "resampler") == budget(16, 16, "resampler") == 16
    with pytest.raises(ValueError, match="tokens is 0, but this resampler was built for 16"):
        budget(16, 0, "resampler")


def test_an_elastic_budget_stays_within_the_grid() -> None:
    assert [in_range(tokens, 6) for tokens in (1, 36)] == [1, 36]
    with pytest.raises(ValueError, match="tokens is 37, but a 6 x 6 grid has 36 patches: choose 1 to 36"):
        in_range(37, 6)


def test_fitting_budgets_follow_the_grid() -> None:
    assert fitting_budgets(24, 144) == (144, 64, 36, 16, 9, 4)
    assert fitting_budgets(12, 1) == (1,)


def test_nested_budgets_are_even_and_end_with_all() -> None:
    assert nested_budgets(256) == tuple(range(2, 257, 2))
    assert [nested_budgets(most) for most in (1, 2, 5)] == [(1,), (2,), (2, 4, 5)]


def test_choices_are_checked_against_the_type() -> None:
    one_of("colour", "red", Literal["red", "blue"])
    with pytest.raises(ValueError, match="colour is 'grey': choose one of red, blue"):
        one_of("colour", "grey", Literal["red", "blue"])


def test_a_declaration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Declaration(name="a", source="b").name = "c"  # type: ignore[misc]
