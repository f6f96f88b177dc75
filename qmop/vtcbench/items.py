"""The item: one picture with one question, the unit that VTCBench counts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

DIMENSIONS = {
    "GU": "Global Understanding",
    "SC": "Spatial and Counting",
    "RC": "Reasoning and Common sense",
    "SE": "Style and Emotion",
    "LD": "Local Details",
}
"""Code and name of each dimension, in the order of the paper's tables."""

STANDARD_ITEMS, COMPARISON_ITEMS = 1_500, 10_000
"""Sizes of the rendered suite, by default and for the comparison of methods: both share out evenly."""

UNLABELLED = "none"
"""The dimension of an item from a user's own corpus: it counts in the micro average and in no dimension."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question about a picture with its accepted answers.

    `difficulty` is a number in the unit of the item's task family (patches for LD, objects for SC and GU, steps
    of inference for RC, grey levels for SE); natural items have none. `choices` is empty for open answers. `level`
    tells core, hard and held-out items of the rendered suite apart, which are reported apart. `focus` names the cells
    of a 6 x 6 lattice over the picture that the answer depends on, where it depends on some.
    """

    key: str
    question: str
    answers: tuple[str, ...]
    dimension: str
    task: str
    source: str = "rendered"
    scorer: str = "exact_match"
    choices: tuple[str, ...] = ()
    difficulty: float | None = None
    level: str = "core"
    focus: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.dimension not in (*DIMENSIONS, UNLABELLED):
            expected = ", ".join((*DIMENSIONS, UNLABELLED))
            raise ValueError(f"item {self.key}: dimension is {self.dimension!r}, expected one of {expected}")
        if not self.answers:
            raise ValueError(f"item {self.key}: answers is empty, at least one accepted answer is needed")

    @property
    def chance(self) -> float:
        """The accuracy of a uniform guess among the choices; 0 for open answers."""
        return 1.0 / len(self.choices) if self.choices else 0.0

    def to_json(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, so that equal items have equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes | str) -> Item:
        """Read an item back.

        Raises:
            ValueError: if the text is no JSON object with exactly an item's fields.
        """
        fields = json.loads(data)
        if not isinstance(fields, dict):
            raise ValueError(f"an item must be a JSON object, got {type(fields).__name__}")
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"an item with fields {sorted(fields)} does not fit: {error}") from error
