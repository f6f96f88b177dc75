"""The smaller tables of a report in Markdown, and what cells of any table say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from qmop.vtcbench.report_types import Pair, Report, Row, verdict
from qmop.vtcbench.statistics import Estimate

ABOUT_SOURCES = (
    "Mean retention is the mean over sources of accuracy by the reference's, on the items that both have; the paper "
    "averages its tables so, but over whole benchmarks and with MME's score of perception. MME's own score is per "
    "category accuracy plus the share of pictures with both questions right, up to 200, over pictures of which the "
    "suite holds both questions."
)
_NAMED = 3
"""Items that a cell names; the JSON has all."""
_LONGEST_REASON = 120


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table; what a cell holds is text, of one line."""
    rows = [head, ["---"] * len(head), *body]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |" for row in rows
    )


def interval(estimate: Estimate | None) -> str:
    """Percent with the ends of the 95 % interval."""
    if estimate is None:
        return "-"
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def brief(estimate: Estimate | None) -> str:
    """Percent alone."""
    return "-" if estimate is None else f"{100 * estimate.value:.1f}"


def asides(row: Row) -> list[str]:
    """What a reader must know of a row beside its figures, in a few words each."""
    counts = (
        (row.missing, f"lacks {row.missing} items"),
        (row.unparsable, f"{row.unparsable} unreadable"),
        (len(row.unanswered), f"{len(row.unanswered)} not answered"),
    )
    return [words for count, words in counts if count]


def named(unanswered: Mapping[str, str]) -> str:
    """The first few items that could not be answered, with their reasons, and how many more there are."""
    first = [f"{key} ({_cut(why)})" for key, why in islice(unanswered.items(), _NAMED)]
    more = len(unanswered) - len(first)
    return "; ".join(first) + (f"; and {more} more" if more else "")


def _cut(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]} ..."


def level_table(report: Report) -> str:
    """Accuracy on core, hard and held-out items apart."""
    body = [[row.label, *(interval(row.levels.get(level)) for level in report.levels)] for row in report.rows]
    body.append(["*chance*", *(f"{100 * report.level_chance[level]:.1f}" for level in report.levels)])
    return table(["row", *(f"{level} (n={count})" for level, count in report.levels.items())], body)


def task_table(report: Report) -> str:
    """Accuracy by task family, one column per row of the report, with the chance of the family's items."""
    body = [
        [
            name,
            ", ".join(family.dimensions) or "-",
            str(family.n),
            f"{100 * family.chance:.1f}",
            *(brief(row.tasks.get(name)) for row in report.rows),
        ]
        for name, family in report.tasks.items()
    ]
    return table(["task", "dimension", "n", "chance", *(row.label for row in report.rows)], body)


def source_table(report: Report) -> str:
    """Accuracy by source of a natural suite, mean retention over the sources, and MME's own score."""
    scored = any(row.mme for row in report.rows)
    head = ["row", *(f"{name} (n={count})" for name, count in report.sources.items()), "mean retention"]
    head += ["MME perception", "MME cognition"] if scored else []
    body = []
    for row in report.rows:
        kept = "-" if row.mean_retention is None else f"{100 * row.mean_retention:.1f}"
        own = (
            (row.mme.perception, row.mme.best_perception, row.mme.cognition, row.mme.best_cognition) if row.mme else ()
        )
        sums = [f"{got:.1f} of {best}" if best else "-" for got, best in (own[:2], own[2:])] if own else ["-", "-"]
        body.append([row.label, *(brief(row.sources.get(name)) for name in report.sources), kept, *sums * scored])
    return table(head, body)


def unanswered_table(rows: Sequence[Row]) -> str:
    """Items that could not be answered: how many of each row, and the first few."""
    body = [[row.label, str(len(row.unanswered)), named(row.unanswered)] for row in rows if row.unanswered]
    return table(["row", "items", "the first of them"], body)


def router_table(rows: Sequence[Row]) -> str:
    """What the routers chose."""
    body = [
        [
            row.label,
            f"{row.router.entropy:.2f}",
            ", ".join(f"{branches} {100 * share:.1f} %" for branches, share in row.router.choices.items()),
        ]
        for row in rows
        if row.router
    ]
    return table(["row", "entropy of the weights, bits", "branches that ran"], body)


def pair_table(pairs: Sequence[Pair]) -> str:
    """Rows of one token budget against each other."""
    body = [[pair.other, pair.base, interval(pair.comparison.difference), verdict(pair.comparison)] for pair in pairs]
    return table(["row", "against", "difference in points", "exact McNemar"], body)
