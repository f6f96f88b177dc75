from __future__ import annotations

import pytest

from qmop.catalogue import COST_HEAD, METHOD_HEAD, cost_table, markdown, methods_table, renewed
from qmop.compressors import list_compressors


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]


def test_every_method_has_a_row_of_its_declaration() -> None:
    head, _, *rows = cells(methods_table())
    assert head == list(METHOD_HEAD)
    assert [row[0] for row in rows] == [f"`{name}`" for name in list_compressors()]
    assert {len(row) for row in rows} == {len(head)}
    prune, mlp, packer = (
        next(row for row in rows if row[0] == f"`{name}`") for name in ("prune", "mlp", "tokenpacker")
    )
    assert prune[2:6] == ["`cls_attention`, `query`, `text_space`", "-", "yes", "fixed"]
    assert prune[7:9] == ["before the LLM", "connector"]
    assert prune[9].startswith("`lam`, `scale`")
    assert mlp[2:] == ["-", "-", "-", "fixed", "-", "before the LLM", "connector", "-"]
    assert packer[2:4] == ["`levels`", "yes"]


def test_costs_are_stated_at_both_budgets() -> None:
    head, _, whole, pooled = cells(cost_table(["mlp", "average_pool"]))
    assert head == list(COST_HEAD)
    assert whole == ["`mlp`", "21.0 M", "191.0", "-", "12.1", "3,817.2", "302.0", "1.00"]
    assert pooled == [
        "`average_pool`",
        "21.0 M",
        "191.0",
        "-",
        "3.0 / 1.3",
        "938.0 / 415.5",
        "75.5 / 33.6",
        "0.28 / 0.15",
    ]


def test_bars_do_not_break_a_row() -> None:
    assert markdown(["a", "b"], [["1|2", "3"]]) == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |\n"


def test_only_what_stands_between_the_marks_is_renewed() -> None:
    text = "before\n<!-- one -->\nold\n<!-- /one -->\nbetween\n<!-- two -->\n<!-- /two -->\nafter\n"
    once = renewed(text, {"one": lambda: "| new |\n", "two": lambda: "| other |\n"})
    assert once == text.replace("old\n", "\n| new |\n\n").replace("two -->\n<", "two -->\n\n| other |\n\n<")
    assert renewed(once, {"one": lambda: "| new |\n"}) == once
    with pytest.raises(ValueError, match="no place for three: write <!-- three --> and <!-- /three -->"):
        renewed(text, {"three": str})
