from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import qmop.compressors
from qmop.compressors.base import Compressor
from qmop.compressors.mixture import Mixture
from qmop.compressors.registry import build_compressor, default_budget, list_compressors, method_class


def test_the_methods_of_the_folder_are_listed_by_name() -> None:
    names = list(list_compressors())
    assert names == sorted(names)
    assert {"average_pool", "blind", "mlp", "prune", "qmop", "qmop-elastic", "resampler", "window_pool"} <= set(names)


def test_every_declaration_carries_its_own_name_and_a_source() -> None:
    for name, declaration in list_compressors().items():
        assert declaration.name == name
        assert declaration.source


def test_every_file_with_a_compressor_is_registered() -> None:
    folder = Path(qmop.compressors.__file__).parent
    decorated = sum(path.read_text().count("\n@register\n") for path in folder.glob("*.py"))
    assert decorated == len(list_compressors())


def test_text_guided_methods_read_the_question_and_others_do_not() -> None:
    for declaration in list_compressors().values():
        inside = declaration.acts == "in_llm"  # there the question stands in the prompt
        assert declaration.text_guided == ("query" in declaration.reads or inside)


def test_trained_methods_are_those_with_parameters() -> None:
    for name, declaration in list_compressors().items():
        tokens = None if name == "mlp" else 144
        method = build_compressor(name, tokens=tokens, width=64, grid=24)
        assert declaration.trained == bool(list(method.parameters())), name


def test_the_default_is_the_grid_and_width_of_llava() -> None:
    method: Any = build_compressor("window_pool", tokens=144)
    assert (method.grid, method.width, method.tokens, method.stride) == (24, 1024, 144, 2)
    assert build_compressor("mlp").tokens == 576


def test_the_mixture_is_built_from_rooms_that_exist() -> None:
    method = build_compressor("qmop", tokens=144, width=64)
    assert isinstance(method, Mixture)
    assert all(type(branch) is method_class(name) for name, branch in method.branches.items())


def test_options_reach_the_method() -> None:
    assert build_compressor("prune", tokens=9, lam=0.25).lam == 0.25


@pytest.mark.parametrize(
    ("name", "said"),
    [("window_pol", "did you mean 'window_pool'"), ("zzz", "choose one of average_pool, blind, .*window_pool")],
)
def test_an_unknown_method_is_answered_with_known_ones(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"compressor is '{name}', which is not registered: {said}"):
        build_compressor(name)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ValueError, match=r"options names lamda, .* 'prune' .* fields are lam, scale"):
        build_compressor("prune", tokens=9, lamda=0.5)


@pytest.mark.parametrize("tokens", [0, -1, 577])
def test_a_budget_that_the_grid_cannot_fill_is_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match=rf"tokens is {tokens}, but a 24 x 24 grid has 576 patches: choose 1 to 576"):
        build_compressor("prune", tokens=tokens)


def test_methods_are_compressors() -> None:
    assert all(issubclass(method_class(name), Compressor) for name in list_compressors())


@pytest.mark.parametrize(("grid", "tokens"), [(24, 144), (12, 36), (27, 81), (37, 1), (2, 1), (1, 1)])
def test_the_default_budget_is_that_of_the_next_stride_that_divides_the_grid(grid: int, tokens: int) -> None:
    assert build_compressor("prune", grid=grid, width=16).tokens == default_budget("prune", grid) == tokens
    assert default_budget("mlp", grid) == grid * grid
