"""The registered methods as Markdown tables: what they declare, and what they cost at the size of LLaVA-1.5-7B.

`python -m qmop.catalogue` prints the declarations; `--write` renews both tables in this folder's README, which
stand there between `<!-- name -->` and `<!-- /name -->`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qmop.compressors.base import Declaration
from qmop.compressors.registry import list_compressors, option_names
from qmop.cost import Cost, cost_of, llava_config

README = Path(__file__).parent / "README.md"

BUDGETS = (144, 64)
"""Tokens of 576 at which costs are stated; `mlp` has every patch."""

METHOD_HEAD = (
    "method",
    "source",
    "reads beside patches",
    "trained",
    "text-guided",
    "count",
    "budget per call",
    "acts",
    "readout",
    "fields",
)
COST_HEAD = (
    "method",
    "parameters",
    "vision tower",
    "question",
    "reading + projector",
    "language model",
    "KV cache, MB",
    "all, share of `mlp`",
)
_NONE = "-"


def methods_table() -> str:
    """One row per registered method, sorted by name, as GitHub's Markdown; ends with a line break."""
    return markdown(METHOD_HEAD, [_declared(stated) for stated in list_compressors().values()])


def cost_table(names: Sequence[str] | None = None) -> str:
    """GMAC of one picture and one question at the budgets of `BUDGETS`, by `qmop.cost`; nothing here is timed.

    Args:
        names: of methods; every registered one when absent. About two seconds each.
    """
    whole = [cost_of(llava_config("mlp"))] * len(BUDGETS)
    rows = []
    for name in list_compressors() if names is None else names:
        costs = whole if name == "mlp" else [cost_of(llava_config(name, tokens)) for tokens in BUDGETS]
        rows.append(_costing(costs, _all(whole[0])))
    return markdown(COST_HEAD, rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; bars inside a cell are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def renewed(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """A text with its generated tables written anew.

    Args:
        text: in which each table stands between its marks.
        tables: what writes them, by the name in the marks.

    Raises:
        ValueError: if a table's marks are missing.
    """
    for name, write in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"the text has no place for {name}: write <!-- {name} --> and <!-- /{name} --> into it")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{write()}\n{end}{rest.partition(end)[2]}"
    return text


def _declared(stated: Declaration) -> list[str]:
    return [
        f"`{stated.name}`",
        stated.source,
        _listed(sorted(stated.reads)),
        _yes(stated.trained),
        _yes(stated.text_guided),
        "fixed" if stated.fixed_count else "varies",
        _yes(stated.elastic),
        "before the LLM" if stated.acts == "pre_llm" else "inside the LLM",
        stated.readout.replace("_", " "),
        _listed(option_names(stated.name)),
    ]


def _costing(costs: Sequence[Cost], uncompressed: int) -> list[str]:
    return [
        f"`{costs[0].method}`",
        _each([f"{cost.parameters / 1e6:.1f} M" for cost in costs]),
        _each([_giga(cost.vision) for cost in costs]),
        _each([_giga(cost.question) for cost in costs]),
        _each([_giga(cost.own) for cost in costs]),
        _each([_giga(cost.language) for cost in costs]),
        _each([f"{cost.kv_bytes / 1e6:.1f}" for cost in costs]),
        _each([f"{_all(cost) / uncompressed:.2f}" for cost in costs]),
    ]


def _all(cost: Cost) -> int:
    return cost.vision + cost.question + cost.own + cost.language


def _giga(macs: int) -> str:
    return f"{macs / 1e9:,.1f}" if macs else _NONE


def _each(values: Sequence[str]) -> str:
    return " / ".join(dict.fromkeys(values))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or _NONE


def _yes(stated: bool) -> str:
    return "yes" if stated else _NONE


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        tables = {"costs": cost_table, "methods": methods_table}
        README.write_text(renewed(README.read_text(encoding="utf-8"), tables), encoding="utf-8")
    else:
        sys.stdout.write(methods_table())
