"""Recipes from YAML and dotted overrides, with errors that say what was meant."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_origin, get_type_hints

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

R = TypeVar("R")
_SHIPPED = Path(__file__).parent / "recipes"
_BOOLS = ("true", "false")
_UNKNOWN = re.compile(
    r"(?:Group '(?P<group>[\w.]+)' does not accept option|does not accept option|unrecognized arguments: --|^Option) ?"
    r"'?(?P<option>[\w.\-]+)'?"
)
"""How the parser speaks of a field that does not exist: on the command line, in a file, inside a group."""


class RecipeError(ValueError):
    """A recipe that cannot be read; the message is one sentence."""


class _Parser(ArgumentParser):
    """Raises instead of printing usage and leaving."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise RecipeError(message) from ex


def parse_recipe(prog: str, description: str, recipe: type[R], argv: list[str]) -> R:
    """Read a recipe.

    Args:
        prog: the command, for help texts.
        description: first paragraph of the help text.
        recipe: frozen dataclass to fill.
        argv: `--config FILE` (or the name of a shipped recipe) and `--field value` overrides.

    Raises:
        RecipeError: for unknown fields, wrong types and missing files.
        ValueError: for values that the recipe itself refuses.
    """
    known = field_names(recipe)
    parser = _Parser(prog=prog, description=description.strip(), exit_on_error=True, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help=f"recipe in YAML; shipped: {', '.join(shipped())}")
    parser.add_class_arguments(recipe, None, sub_configs=True)
    try:
        values = parser.instantiate(parser.parse_args(_spelled_out(argv, known)))
    except RecipeError as error:
        raise RecipeError(_explain(str(error), prog, list(known))) from error
    return recipe(**{name: value for name, value in vars(values).items() if name != "config"})


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def field_names(recipe: type, prefix: str = "") -> dict[str, Any]:
    """Dotted names of all fields of a recipe, with their types."""
    hints, names = get_type_hints(recipe), {}
    for field in fields(recipe):
        kind = hints[field.name]
        names[prefix + field.name] = kind
        if is_dataclass(kind) and isinstance(kind, type):
            names |= field_names(kind, f"{prefix}{field.name}.")
    return names


def _spelled_out(argv: list[str], known: dict[str, Any]) -> list[str]:
    """Dashes for underscores, switches without a value, lists as plain words, and shipped recipes by name.

    Every option comes out as one word, `--name=value`.
    """
    words: list[str] = []
    left = list(argv)
    while left:
        word = left.pop(0)
        if not word.startswith("--") or word == "--help":
            words.append(word)
            continue
        name, equals, value = word.partition("=")
        name = name.replace("-", "_").replace("__", "--", 1)
        values = [value] if equals else _following(left)
        kind = known.get(name[2:])
        if kind is bool and not equals and (not values or values[0].lower() not in _BOOLS):
            values.insert(0, "true")
        if get_origin(kind) in (list, tuple) and values and not values[0].startswith("["):
            values = [json.dumps(values)]
        if name == "--config" and values:
            values[0] = _shipped_or_file(values[0])
        words += [f"{name}={values[0]}", *values[1:]] if values else [name]
    return words


def _following(left: list[str]) -> list[str]:
    """The words up to the next option, taken away."""
    count = next((place for place, word in enumerate(left) if word.startswith("--")), len(left))
    taken, left[:count] = left[:count], []
    return taken


def _shipped_or_file(name: str) -> str:
    """A recipe's file.

    Raises:
        RecipeError: if there is none.
    """
    path = _SHIPPED / f"{name}.yaml" if name in shipped() else Path(name)
    if not path.is_file():
        raise RecipeError(f"config {name} does not exist: give a file, or one of {', '.join(shipped())}")
    return str(path)


def _explain(message: str, prog: str, known: list[str]) -> str:
    """One sentence out of the parser's message, naming the nearest fields where one is unknown."""
    text = " ".join(message.split())
    unknown = _UNKNOWN.search(text)
    if unknown is None:
        return text.replace('Parser key "', 'field "')
    name = ".".join(part for part in (unknown["group"], unknown["option"]) if part)
    near = get_close_matches(name, known, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}?" if near else f"`{prog} --help` lists them"
    return f"the recipe has no field {name!r}: {hint}"
