"""Bounds of a recipe's numbers."""

from types import SimpleNamespace

import pytest

from cluster.bounds import require_above, require_at_least


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
