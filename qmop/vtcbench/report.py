"""The report in words and numbers: Markdown for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.lmms_eval import to_lmms_eval
from qmop.vtcbench.report_html import Sample, pick_samples, to_html
from qmop.vtcbench.report_types import Pair, Report, Row, verdict
from qmop.vtcbench.statistics import Estimate
from qmop.vtcbench.summary import summarise

__all__ = [
    "Report",
    "Row",
    "Sample",
    "pick_samples",
    "summarise",
    "to_html",
    "to_json",
    "to_lmms_eval",
    "to_markdown",
]


def to_json(report: Report) -> str:
    """The whole report as JSON, figures unrounded."""
    return json.dumps(asdict(report), indent=1) + "\n"


def to_markdown(report: Report) -> str:
    """The report's tables as Markdown, accuracies in percent with their 95 % intervals."""
    codes = list(report.counts)
    head = ["row", *(f"{code} (n={report.counts[code]})" for code in codes), "micro", "macro", "tokens", "retention"]
    head += ["information loss", "visual gain", "against the reference"]
    body = [_cells(row, codes, report) for row in report.rows]
    chance = [
        f"{100 * report.chance[name]:.1f}" if name in report.chance else "-" for name in (*codes, "micro", "macro")
    ]
    body.append(["*chance*", *chance, "", "", "", "", ""])
    names = ", ".join(f"{code} {DIMENSIONS[code]}" for code in codes) or "items without a dimension"
    head_line = f"VTCBench (QMoP's: {names}), suite `{report.suite_digest[:12]}`, {report.items} items."
    parts = [head_line, _table(head, body), _legend(report)]
    if report.pairs:
        parts += ["Rows of one token budget against each other (exploratory):", _pair_table(report.pairs)]
    facts = {**report.provenance, **report.versions, "bootstrap": f"{report.resamples} resamples, seed {report.seed}"}
    parts.append("; ".join(f"{name} {value}" for name, value in facts.items()) + ".")
    return "\n\n".join(parts) + "\n"


def _legend(report: Report) -> str:
    return (
        "Accuracy in % [95 % interval over items]; tokens are visual tokens per picture; information loss is the share "
        f"of items that `{report.reference}` has right and the row misses; visual gain is accuracy minus that of "
        f"`{report.blind}`. One training run per row: intervals tell items apart, not training seeds."
    )


def _cells(row: Row, codes: Sequence[str], report: Report) -> list[str]:
    against = row.against_reference
    standing = "reference" if row.label == report.reference else "no reference"
    return [
        row.label + (f" (lacks {row.missing} items)" if row.missing else ""),
        *(_brief(row.dimensions.get(code)) for code in codes),
        _interval(row.micro),
        _interval(row.macro),
        f"{row.visual_tokens:g}",
        _interval(against.retention if against else None),
        _interval(against.loss if against else None),
        _interval(row.visual_gain),
        verdict(against, report.reference) if against else standing,
    ]


def _pair_table(pairs: Sequence[Pair]) -> str:
    body = [[pair.other, pair.base, _interval(pair.comparison.difference), verdict(pair.comparison)] for pair in pairs]
    return _table(["row", "against", "difference in points", "exact McNemar"], body)


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _brief(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{100 * estimate.value:.1f}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
