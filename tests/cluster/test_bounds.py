"""Bounds of a recipe's numbers."""

from types import SimpleNamespace

import pytest

from cluster.bounds import require_above, require_at_least, require_within


def test_the_least_value_itself_passes_and_what_is_absent_too() -> None:
    recipe = SimpleNamespace(count=1, limit=None)
    require_at_least(recipe, 1, "count", "limit")
    require_above(recipe, 0.5, "count", "limit")


@pytest.mark.parametrize("value", [0, -3, float("nan")])
def test_less_is_refused_by_name_value_and_bound(value: float) -> None:
    with pytest.raises(ValueError, match=f"^watching.count is {value}, but it must be at least 1$"):
        require_at_least(SimpleNamespace(fine=2, count=value), 1, "fine", "count", inside="watching.")


@pytest.mark.parametrize("value", [0, -3, float("nan")])
def test_the_bound_itself_is_not_above_it(value: float) -> None:
    with pytest.raises(ValueError, match=f"^rate is {value}, but it must be above 0$"):
        require_above(SimpleNamespace(fine=2, rate=value), 0, "fine", "rate")


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_what_lies_outside_is_refused_with_both_bounds(value: float) -> None:
    with pytest.raises(ValueError, match=f"^tune.rate is {value}, but it must be at least 0 and at most 1$"):
        require_within(SimpleNamespace(fine=1, absent=None, rate=value), 0, 1, "fine", "absent", "rate", inside="tune.")


def test_the_largest_value_itself_passes_unless_it_has_to_be_below() -> None:
    recipe = SimpleNamespace(rate=1, seed=2**32 - 1, clip=float("inf"))
    require_within(recipe, 0, 1, "rate")
    with pytest.raises(ValueError, match=r"^rate is 1, but it must be at least 0 and below 1$"):
        require_within(recipe, 0, 1, "rate", below=True)
    with pytest.raises(ValueError, match=r"^clip is inf, but it must be at least 0 and below inf$"):
        require_within(recipe, 0, float("inf"), "clip", below=True)
    with pytest.raises(ValueError, match=r"^seed is 4294967295, .* at most 4294967294$"):
        require_within(recipe, 0, 2**32 - 2, "seed")
