"""A least accuracy that checkpoints must reach, for scripts that go on only if they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.records import Record

if TYPE_CHECKING:
    from qmop.vtcbench.report_types import Row

METRICS = ("micro", "macro", *DIMENSIONS)


def parse_gate(text: str | None) -> dict[str, float]:
    """`micro=0.6,LD=0.4` as a mapping; nothing is asked for when absent, and something has to be otherwise.

    Raises:
        ValueError: if a part is no known metric with an accuracy from 0 to 1.
    """
    wanted: dict[str, float] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in METRICS:
            raise ValueError(f"fail_below names {name!r}: choose of {', '.join(METRICS)}, such as micro=0.6")
        try:
            wanted[name] = float(value)
        except ValueError as error:
            raise ValueError(f"fail_below asks for {part.strip()!r}: write it as {name}=0.6") from error
        if not 0.0 <= wanted[name] <= 1.0:
            raise ValueError(f"fail_below asks for {part.strip()!r}: an accuracy is a number from 0 to 1")
    if text is not None and not wanted:
        raise ValueError(f"fail_below is {text!r}, which asks for nothing: write micro=0.6, or leave it out")
    return wanted


def missed(records: Sequence[Record], text: str | None) -> str:
    """One sentence on every checkpoint that is below; empty if none is.

    A metric of which the suite has no item is missed.
    """
    wanted = parse_gate(text)
    if not wanted:
        return ""
    from qmop.vtcbench.summary import summarise  # noqa: PLC0415 - scipy, which a recipe does without

    rows = summarise(records, resamples=1).rows if records else []
    short = [
        f"{row.label} has {name} {'of no item' if value is None else f'{value:.3f}'}, below {least:g}"
        for row in rows
        for name, least in wanted.items()
        if (value := _value(row, name)) is None or value < least
    ]
    return "; ".join(short) if rows else "there is no result to hold against fail_below"


def _value(row: Row, name: str) -> float | None:
    figure = {"micro": row.micro, "macro": row.macro, **row.dimensions}.get(name)
    return None if figure is None else figure.value
