"""The report in words and numbers: Markdown for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.lmms_eval import lmms_eval_files
from qmop.vtcbench.report_html import Sample, pick_samples, to_html, with_drawings, worth_showing
from qmop.vtcbench.report_tables import (
    ABOUT_SOURCES,
    asides,
    brief,
    interval,
    level_table,
    pair_table,
    router_table,
    source_table,
    table,
    task_table,
    unanswered_table,
)
from qmop.vtcbench.report_types import Report, Row, standing
from qmop.vtcbench.summary import require_second_run, summarise

__all__ = [
    "Report",
    "Row",
    "Sample",
    "lmms_eval_files",
    "pick_samples",
    "require_second_run",
    "summarise",
    "to_html",
    "to_json",
    "to_markdown",
    "with_drawings",
    "worth_showing",
]

STAGES_TOLD = ("prefill", "first token", "decode, per token")


def to_json(report: Report) -> str:
    """The whole report as JSON, figures unrounded."""
    return json.dumps(asdict(report), indent=1) + "\n"


def to_markdown(report: Report) -> str:
    """The report's tables as Markdown, accuracies in percent with their 95 % intervals."""
    names = ", ".join(f"{code} {DIMENSIONS[code]}" for code in report.counts) or "items without a dimension"
    head_line = f"VTCBench (QMoP's: {names}), suite `{report.suite_digest[:12]}`, {report.items} items."
    parts = [head_line, _main_table(report), _legend(report)]
    if any(row.unanswered for row in report.rows):
        parts += ["Items that could not be answered, and count as wrong:", unanswered_table(report.rows)]
    if len(report.levels) > 1:
        parts += ["Accuracy by level:", level_table(report)]
    if report.sources:
        parts += [f"Accuracy by source in %. {ABOUT_SOURCES}", source_table(report)]
    parts += ["Accuracy by task family in %:", task_table(report)]
    if any(row.router for row in report.rows):
        parts += ["Routers:", router_table(report.rows)]
    if report.pairs:
        parts += ["Rows of one token budget against each other (exploratory):", pair_table(report.pairs)]
    facts = {**report.provenance, **report.versions, "bootstrap": f"{report.resamples} resamples, seed {report.seed}"}
    parts.append("; ".join(f"{name} {value}" for name, value in facts.items()) + ".")
    return "\n\n".join(parts) + "\n"


def _main_table(report: Report) -> str:
    codes, floors = list(report.counts), report.floors
    beside = ("", "") if floors is None else (f" (floor {brief(floors.loss)})", f" (floor {brief(floors.gain)})")
    head = ["row", *(f"{code} (n={report.counts[code]})" for code in codes), "micro", "macro", "tokens", "retention"]
    head += [f"information loss{beside[0]}", f"reverse share{beside[1]}", "visual gain"]
    head += [*_cost_heads(report), "against the reference"]
    chance = [
        f"{100 * report.chance[name]:.1f}" if name in report.chance else "-" for name in (*codes, "micro", "macro")
    ]
    last = ["*chance*", *chance, *[""] * (len(head) - 1 - len(chance))]
    return table(head, [*(_cells(row, codes, report) for row in report.rows), last])


def _legend(report: Report) -> str:
    sentences = [
        (
            "Accuracy in % [95 % interval over items]; tokens are visual tokens per picture; information loss is the "
            f"share of the items that `{report.reference}` has right which the row misses, the reverse share that of "
            "the items that it misses which the row has right; visual gain is accuracy minus "
            f"that of `{report.blind}`; retention is accuracy over the reference's. One training run per row: "
            "intervals tell items apart, not training seeds. An unreadable answer counts as wrong."
        ),
        _about_the_floor(report),
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
    return " ".join(sentence for sentence in sentences if sentence)


def _about_the_floor(report: Report) -> str:
    if report.floor is not None:
        return f"The floor is what `{report.floor}`, a second run of the reference, loses and gains."
    if report.row(report.reference) is None:
        return ""
    return (
        "Two runs of the reference lose items to each other too: `qmop report --floor LABEL` names a second one and "
        "tells that floor."
    )


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


def _cells(row: Row, codes: Sequence[str], report: Report) -> list[str]:
    against, beside = row.against_reference, asides(row)
    return [
        row.label + (f" ({', '.join(beside)})" if beside else ""),
        *(brief(row.dimensions.get(code)) for code in codes),
        interval(row.micro),
        interval(row.macro),
        f"{row.visual_tokens:g}",
        interval(against.retention if against else None),
        interval(against.loss if against else None),
        interval(against.gain if against else None),
        interval(row.visual_gain),
        *_costs(row, report),
        standing(row, report),
    ]
