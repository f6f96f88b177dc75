"""The report in words and numbers: Markdown for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.lmms_eval import to_lmms_eval
from qmop.vtcbench.report_html import Sample, pick_samples, to_html, with_drawings
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
    "with_drawings",
]

STAGES_TOLD = ("prefill", "first token", "decode, per token")


def to_json(report: Report) -> str:
    """The whole report as JSON, figures unrounded."""
    return json.dumps(asdict(report), indent=1) + "\n"


def to_markdown(report: Report) -> str:
    """The report's tables as Markdown, accuracies in percent with their 95 % intervals."""
    codes = list(report.counts)
    head = ["row", *(f"{code} (n={report.counts[code]})" for code in codes), "micro", "macro", "tokens", "retention"]
    head += ["information loss", "visual gain", *_cost_heads(report), "against the reference"]
    body = [_cells(row, codes, report) for row in report.rows]
    chance = [
        f"{100 * report.chance[name]:.1f}" if name in report.chance else "-" for name in (*codes, "micro", "macro")
    ]
    body.append(["*chance*", *chance, *[""] * (len(head) - 1 - len(chance))])
    names = ", ".join(f"{code} {DIMENSIONS[code]}" for code in codes) or "items without a dimension"
    head_line = f"VTCBench (QMoP's: {names}), suite `{report.suite_digest[:12]}`, {report.items} items."
    parts = [head_line, _table(head, body), _legend(report)]
    if len(report.levels) > 1:
        parts += ["Accuracy by level:", _level_table(report)]
    if any(row.router for row in report.rows):
        parts += ["Routers:", _router_table(report.rows)]
    if report.pairs:
        parts += ["Rows of one token budget against each other (exploratory):", _pair_table(report.pairs)]
    facts = {**report.provenance, **report.versions, "bootstrap": f"{report.resamples} resamples, seed {report.seed}"}
    parts.append("; ".join(f"{name} {value}" for name, value in facts.items()) + ".")
    return "\n\n".join(parts) + "\n"


def _legend(report: Report) -> str:
    sentences = [
        (
            "Accuracy in % [95 % interval over items]; tokens are visual tokens per picture; information loss is the "
            f"share of items that `{report.reference}` has right and the row misses; visual gain is accuracy minus "
            f"that of `{report.blind}`; retention is accuracy over the reference's. One training run per row: "
            "intervals tell items apart, not training seeds."
        )
    ]
    if len(report.levels) > 1:
        sentences.append("Dimensions, micro and macro are over the items of all levels.")
    if any(row.cost for row in report.rows):
        sentences.append(
            "Computed for one picture and one question: GMAC and cached MB (half precision) of the language model over "
            "the visual tokens, GMAC of the method with its connector (at most, where a router chooses)."
        )
    if measured := next((row.profile for row in report.rows if row.profile), None):
        sentences.append(
            f"Times are medians of {measured.rounds} rounds on {measured.device}, {measured.rows} questions at once, "
            "divided by their number."
        )
    return " ".join(sentences)


def _cost_heads(report: Report) -> list[str]:
    computed = ["LLM GMAC", "KV MB", "method GMAC"] if any(row.cost for row in report.rows) else []
    measured = [f"{name}, ms" for name in STAGES_TOLD] if any(row.profile for row in report.rows) else []
    return computed + measured


def _costs(row: Row, report: Report) -> list[str]:
    """The cells under `_cost_heads`."""
    cells = []
    if any(other.cost for other in report.rows):
        figures = (row.cost.language / 1e9, row.cost.kv_bytes / 1e6, row.cost.own / 1e9) if row.cost else None
        cells += [f"{value:.3g}" for value in figures] if figures else ["-"] * 3
    if any(other.profile for other in report.rows):
        times = [row.profile.stages[name].median / row.profile.rows for name in STAGES_TOLD] if row.profile else None
        cells += [f"{value:.3g}" for value in times] if times else ["-"] * len(STAGES_TOLD)
    return cells


def _level_table(report: Report) -> str:
    body = [[row.label, *(_interval(row.levels.get(level)) for level in report.levels)] for row in report.rows]
    body.append(["*chance*", *(f"{100 * report.level_chance[level]:.1f}" for level in report.levels)])
    return _table(["row", *(f"{level} (n={count})" for level, count in report.levels.items())], body)


def _router_table(rows: Sequence[Row]) -> str:
    body = [
        [
            row.label,
            f"{row.router.entropy:.2f}",
            ", ".join(f"{branches} {100 * share:.1f} %" for branches, share in row.router.choices.items()),
        ]
        for row in rows
        if row.router
    ]
    return _table(["row", "entropy of the weights, bits", "branches that ran"], body)


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
        *_costs(row, report),
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
