"""What the numbers of a recipe must keep to."""

from __future__ import annotations


def require_at_least(recipe: object, least: float, *names: str, inside: str = "") -> None:
    """Refuse fields below their least value; one that is None is not given and passes.

    Args:
        recipe: whose fields they are.
        least: the smallest value that passes; NaN never does.
        names: the fields.
        inside: what stands before their names when they are given, such as ``validation.``.

    Raises:
        ValueError: naming the field, its value and the bound.
    """
    for name in names:
        value = getattr(recipe, name)
        if value is not None and not value >= least:
            raise ValueError(f"{inside}{name} is {value}, but it must be at least {least:g}")


def require_above(recipe: object, bound: float, *names: str, inside: str = "") -> None:
    """As `require_at_least`, with a bound that is refused itself.

    Raises:
        ValueError: naming the field, its value and the bound.
    """
    for name in names:
        value = getattr(recipe, name)
        if value is not None and not value > bound:
            raise ValueError(f"{inside}{name} is {value}, but it must be above {bound:g}")


def require_within(
    recipe: object, least: float, most: float, *names: str, inside: str = "", below: bool = False
) -> None:
    """As `require_at_least`, with a largest value as well.

    Args:
        recipe: whose fields they are.
        least: the smallest value that passes; NaN never does.
        most: the largest value; infinity with `below` lets every number pass that is one.
        names: the fields.
        inside: what stands before their names when they are given, such as ``validation.``.
        below: whether the largest value is refused itself.

    Raises:
        ValueError: naming the field, its value and both bounds.
    """
    for name in names:
        value = getattr(recipe, name)
        if value is not None and not (least <= value and (value < most if below else value <= most)):
            word = "and below" if below else "and at most"
            raise ValueError(f"{inside}{name} is {value}, but it must be at least {least:g} {word} {most:.15g}")
