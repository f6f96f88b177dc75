"""What a method is: a declaration of what it reads, and a module from N patches to M tokens."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from qmop.compressors.values import is_whole, whole
from qmop.features import CompressedTokens, Grid, Query, VisualFeatures

Reads = Literal[
    "levels", "class_token", "summary", "cls_attention", "keys", "text_space", "query", "last_text", "language_query"
]
"""What beside the patches a method may ask for; only what is declared is computed."""

ASKS: frozenset[Reads] = frozenset({"query", "text_space", "last_text"})
"""Reads that only a text tower can fill."""

Readout = Literal["connector", "connector_first", "own"]


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """How a method acts and what it needs.

    Attributes:
        name: its name in the registry.
        source: the paper or design that it follows.
        reads: features beyond the patches of the selected layer.
        trained: whether it has parameters of its own to train.
        text_guided: whether its result depends on the question.
        fixed_count: whether every image gets the same number of tokens.
        elastic: whether one built method takes any fitting budget per call.
        acts: before the language model or inside it.
        readout: `connector`: compress C wide, then the shared connector; `connector_first`: connect every patch,
            then compress D wide; `own`: the method itself ends at width D.
        attention_layer: block whose class attention and keys are read; negative counts from the end.
        split_heads: whether that attention is the mean over heads, or that of one head as wide as the tower.
        text_layer: hidden state whose patches are mapped into text space.
        text_norm: whether they pass the tower's final LayerNorm on the way.
    """

    name: str
    source: str
    reads: frozenset[Reads] = frozenset()
    trained: bool = False
    text_guided: bool = False
    fixed_count: bool = True
    elastic: bool = False
    acts: Literal["pre_llm", "in_llm"] = "pre_llm"
    readout: Readout = "connector"
    attention_layer: int = -1
    split_heads: bool = True
    text_layer: int = -1
    text_norm: bool = True


class Compressor(nn.Module, ABC):
    """N x C features of an image to M x C tokens (M x D for methods with a readout of their own).

    A subclass with fields of its own takes them as keyword-only arguments after these. One named `text_width` or
    `language_width` is filled in from the model's configuration where the user leaves it out. A subclass whose
    options change what it reads sets `self.declaration` to a changed copy.

    Args:
        width: C, the width of the vision tower (D, the language width, with `readout="connector_first"`).
        grid: side of the square patch grid.
        tokens: M, the budget.

    Raises:
        ValueError: if a size is no count, or the budget does not suit the grid; when called, if the features come
            from another grid.
    """

    declaration: Declaration

    def __init__(self, *, width: int, grid: int, tokens: int) -> None:
        super().__init__()
        self.width = whole("width", width, "it is the number of channels of a patch")
        self.grid = grid_side(grid)
        self.tokens = in_range(tokens, self.grid)
        self.register_forward_pre_hook(_check_grid, with_kwargs=True)

    @classmethod
    def default_tokens(cls, grid: int) -> int:
        """The budget where none is named: stride 2 or the next one that divides the grid; 144 of 576, 81 of 729."""
        return max(side for side in range(1, max(2, grid // 2 + 1)) if grid % side == 0) ** 2

    @abstractmethod
    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """Compress.

        Args:
            features: with the fields that the declaration names.
            query: one row per image, for text-guided methods.
            tokens: another budget than the built one, where the method is elastic.
        """

    def check_grid(self, features: VisualFeatures) -> None:
        """Refuse features of another grid than the one that this was built for; every call begins with it.

        Raises:
            ValueError: if they are.
        """
        if (count := features.patches_BNC.shape[1]) != self.grid**2:
            raise ValueError(
                f"features have {count} patches, but this method was built for a {self.grid} x {self.grid} grid: "
                "build it for the grid of the pictures"
            )

    def token_count(self, tokens: int, *, grid: Grid, stage: int) -> int:
        """How many tokens the language model sees (at most, if it varies) for a budget, on a grid, in a stage."""
        del grid, stage
        return tokens

    def training_budgets(self) -> tuple[int, ...]:
        """Budgets of which one is drawn per training step; a single one for methods built for it.

        Training-free elastic methods have nothing to learn from several, so they too are tuned at the built one.
        """
        return (self.tokens,)

    def align(self, features: VisualFeatures, query: Query | None = None) -> CompressedTokens:
        """Compress in the alignment stage, where there may be no question: as `forward` unless overridden."""
        return self(features, query)

    def picture(self, pixels_BCHW: Tensor, patch_size: int, tokens: int | None = None) -> Tensor:
        """What the vision tower is shown: the pixels as they are, unless a method acts on the picture itself."""
        del patch_size, tokens
        return pixels_BCHW

    def initialise(self) -> None:
        """Set the start values of parameters held by this very module (not by its children)."""


def _check_grid(method: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert isinstance(method, Compressor)
    method.check_grid(args[0] if args else kwargs["features"])


def in_range(tokens: int, grid: int) -> int:
    """A budget that a `grid` x `grid` map can fill.

    Raises:
        ValueError: if there are fewer patches, none is asked for, or the number is not whole.
    """
    return whole("tokens", tokens, f"a {grid} x {grid} grid has {grid * grid} patches", most=grid * grid)


def grid_side(grid: int) -> int:
    """The side of a square patch grid.

    Raises:
        ValueError: if it is no count.
    """
    return whole("grid", grid, "it is the side of the square of patches")


def one_of(field: str, value: object, choices: Any) -> None:
    """Check a field against a `Literal` type.

    Raises:
        ValueError: if it is none of the choices.
    """
    if value not in (known := get_args(choices)):
        raise ValueError(f"{field} is {value!r}: choose one of {', '.join(map(str, known))}")


def stride_of(grid: int, tokens: int) -> int:
    """The stride that leaves `tokens` of a `grid` x `grid` map.

    Raises:
        ValueError: if no stride that divides the grid leaves that many; the message lists those that would.
    """
    side = math.isqrt(max(tokens, 0)) if is_whole(tokens) else 0
    if side * side != tokens or side == 0 or grid % side:
        fitting = [(grid // stride) ** 2 for stride in range(1, grid + 1) if grid % stride == 0]
        raise ValueError(
            f"tokens is {tokens!r}, but a {grid} x {grid} grid can be cut evenly only into "
            f"{', '.join(map(str, fitting))} tokens: choose one of these"
        )
    return grid // side


def fitting_budgets(grid: int, most: int, least: int = 4) -> tuple[int, ...]:
    """Counts of all strides that divide a grid, from `most` down to `least` (or to `most` itself, if smaller)."""
    counts = [(grid // stride) ** 2 for stride in range(1, grid + 1) if grid % stride == 0]
    return tuple(count for count in counts if min(least, most) <= count <= most)


def nested_budgets(most: int) -> tuple[int, ...]:
    """What nested queries are trained with: 2, 4, 6 and so on (MQT), and `most` itself, so that all of them learn."""
    return (*range(2, most, 2), most)


def budget(own: int, asked: int | None, name: str) -> int:
    """The built budget, for methods whose parameters fix it.

    Raises:
        ValueError: if another budget is asked for.
    """
    if asked not in (None, own):
        raise ValueError(f"tokens is {asked}, but this {name} was built for {own}: build another for that budget")
    return own
