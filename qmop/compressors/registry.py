"""Names to methods. A method's file registers itself; the files of this folder are imported on first use."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from qmop.compressors.base import Compressor, Declaration, grid_side

_METHODS: dict[str, type[Compressor]] = {}
C = TypeVar("C", bound=type[Compressor])


def register(method: C) -> C:
    """Class decorator: enter a method under the name that it declares."""
    _METHODS[method.declaration.name] = method
    return method


@cache
def _import_methods() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"qmop.compressors.{module.name}")


def method_class(name: str) -> type[Compressor]:
    """The class of a registered method.

    Raises:
        ValueError: if there is no method of that name; the message names near ones.
    """
    _import_methods()
    if name not in _METHODS:
        near = get_close_matches(name, _METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(_METHODS))}"
        raise ValueError(f"compressor is {name!r}, which is not registered: {hint}")
    return _METHODS[name]


def list_compressors() -> dict[str, Declaration]:
    """Name and declaration of every registered method, sorted by name."""
    _import_methods()
    return {name: _METHODS[name].declaration for name in sorted(_METHODS)}


def check_options(whose: str, options: object, known: list[str]) -> None:
    """Refuse options that are no mapping or name a field that is not there.

    Raises:
        ValueError: naming the wrong fields and the right ones.
    """
    if not isinstance(options, dict):
        raise ValueError(f"options of {whose} are {options!r}, but a mapping of fields to values is needed")
    unknown = sorted(set(map(str, options)) - set(known))
    if unknown:
        takes = f"its fields are {', '.join(known)}" if known else "it has none"
        raise ValueError(f"options names {', '.join(unknown)}, which {whose} does not take: {takes}")


def option_names(name: str) -> list[str]:
    """The fields of a method beside width, grid and budget; those behind `**options` come from the class it varies."""
    found: dict[str, None] = {}
    for ancestor in method_class(name).__mro__:
        if "__init__" not in vars(ancestor):
            continue
        fields = signature(ancestor).parameters.values()
        found |= {field.name: None for field in fields if field.kind is not field.VAR_KEYWORD}
        if all(field.kind is not field.VAR_KEYWORD for field in fields):
            break
    return [field for field in found if field not in ("width", "grid", "tokens")]


def default_budget(name: str, grid: int) -> int:
    """The budget of a method where none is named, on a grid.

    Raises:
        ValueError: if there is no method of that name, or the grid is no count.
    """
    return method_class(name).default_tokens(grid_side(grid))


def build_compressor(
    name: str, *, grid: int = 24, width: int = 1024, tokens: int | None = None, **options: Any
) -> Compressor:
    """Build a method by name, by default for the tower of LLaVA-1.5 (24 x 24 patches of width 1024).

    Args:
        name: a name of `list_compressors()`.
        grid: side of the patch grid.
        width: C, the vision width.
        tokens: M, the budget; when absent every patch for `mlp`, and for other methods what stride 2 leaves, or the
            next one that divides the grid: a quarter of an even grid, but 81 of 27 x 27 patches and a single one of
            a prime grid such as 37 x 37, where a budget should be named.
        options: the method's own fields.

    Raises:
        ValueError: for an unknown name or option, or a budget that does not suit the grid.
    """
    method: Callable[..., Compressor] = method_class(name)
    check_options(f"compressor {name!r}", options, option_names(name))
    budget = default_budget(name, grid) if tokens is None else tokens
    return method(width=width, grid=grid, tokens=budget, **options)
