"""The report's plots as SVG that stands inside a page: no fonts, no ids that clash, colours that follow the theme.

Figures are narrow on purpose: a phone shows them at nearly their own size, so their words stay readable.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.report_types import Report, Row
from qmop.vtcbench.statistics import Estimate

PALETTE = ("#2b7bba", "#e08a00", "#1a9b76", "#c8609b", "#d1521b", "#8a6fd1", "#7f8c1f", "#3aa6c9")
"""Colours that tell apart for most kinds of colour vision, on white and on black."""
NEUTRAL = "#8a8f98"
_MARKERS = "osD^vPXp"
INK = "#010203"
"""Stands for the page's own text colour until the SVG is written."""
_BRANCH_COLOURS = ("#5667b3", "#c2a83e", "#9b9ea6", "#a8564f", "#4f8f8b")
_WIDTH = 4.4  # inches
_NUDGE = 1.07
_STYLE: Any = {  # Any: matplotlib types its keys as one long literal
    "svg.fonttype": "none",
    "svg.hashsalt": "vtcbench",
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def colours(report: Report) -> dict[str, str]:
    """One colour per label, the same in every plot and in the table; the reference is ink, blind is grey."""
    others = [row.label for row in report.rows if row.label not in {report.reference, report.blind}]
    return {
        report.blind: NEUTRAL,
        report.reference: INK,
        **{label: PALETTE[i % len(PALETTE)] for i, label in enumerate(others)},
    }


def markers(report: Report) -> dict[str, str]:
    """One marker per label, for eyes and printers that see no colour."""
    return {row.label: _MARKERS[i % len(_MARKERS)] for i, row in enumerate(report.rows)}


def accuracy_by_dimension(report: Report) -> str | None:
    """Dots with intervals, one group per dimension, chance as a dotted line; SVG text, None without dimensions."""
    codes = list(report.counts)
    if not codes:
        return None
    step = len(report.rows) + 1.2
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(0.9 + 0.13 * step * len(codes))
        for group, code in enumerate(codes):
            top = group * step
            for index, row in enumerate(report.rows):
                if code in row.dimensions:
                    _dot(axes, row, row.dimensions[code], top + index, report)
            level = 100 * report.chance[code]
            axes.plot([level, level], [top - 0.6, top + step - 1.6], linestyle=":", color=INK, linewidth=1.2)
        axes.set_yticks([group * step + (step - 2.2) / 2 for group in range(len(codes))], _dimension_names(codes))
        axes.set_ylim(step * len(codes) - 1, -1)
        _percent_axis(axes, "accuracy in % (dotted: chance)")
        return _svg(figure, "dimensions")


def accuracy_by_tokens(report: Report) -> str:
    """Micro accuracy against visual tokens, rows of equal tokens side by side; SVG text."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(3.0)
        for row, shift in _side_by_side(report):
            _upright_dot(axes, row, row.visual_tokens * shift, report)
        if blind := report.row(report.blind):
            axes.axhline(100 * blind.micro.value, color=NEUTRAL, linestyle="--", linewidth=1)
        axes.axhline(100 * report.chance["micro"], color=INK, linestyle=":", linewidth=1.2)
        _token_axis(axes, sorted({row.visual_tokens for row, _ in _side_by_side(report)}))
        axes.set_ylabel("micro accuracy in %")
        axes.grid(axis="y", color=NEUTRAL, alpha=0.25)
        return _svg(figure, "tokens")


def branch_weights(report: Report) -> str | None:
    """Mean router weight per branch and dimension, one panel per row that has a router; SVG text, None if none has."""
    rows = [row for row in report.rows if row.branch_weights]
    if not rows:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.5 + 1.75 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
        for axes, row in zip(panels, rows, strict=True):
            _stack(axes, row)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
        return _svg(figure, "branches")


def _stack(axes: Axes, row: Row) -> None:
    groups = list(row.branch_weights)
    left = [0.0] * len(groups)
    for index, branch in enumerate(row.branch_weights["all"]):
        weights = [row.branch_weights[group][branch] for group in groups]
        axes.barh(
            groups, weights, left=left, height=0.72, color=_BRANCH_COLOURS[index % len(_BRANCH_COLOURS)], label=branch
        )
        left = [start + weight for start, weight in zip(left, weights, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title(row.label, fontsize=9, loc="left")


def _dot(axes: Axes, row: Row, estimate: Estimate, height: float, report: Report) -> None:
    value, below, above = _percent(estimate)
    axes.errorbar(
        [value],
        [height],
        xerr=[[below], [above]],
        fmt=markers(report)[row.label],
        color=colours(report)[row.label],
        markersize=4,
        capsize=2,
        linewidth=1.2,
    )


def _upright_dot(axes: Axes, row: Row, tokens: float, report: Report) -> None:
    value, below, above = _percent(row.micro)
    axes.errorbar(
        [tokens],
        [value],
        yerr=[[below], [above]],
        fmt=markers(report)[row.label],
        color=colours(report)[row.label],
        markersize=5,
        capsize=2,
    )


def _side_by_side(report: Report) -> list[tuple[Row, float]]:
    """Rows that see pictures, each with the factor that keeps it from covering others of equal tokens."""
    rows = [row for row in report.rows if row.label != report.blind and row.visual_tokens > 0]
    groups: dict[float, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.visual_tokens, []).append(row)
    return [
        (row, _NUDGE ** (place - (len(group) - 1) / 2)) for group in groups.values() for place, row in enumerate(group)
    ]


def _percent(estimate: Estimate) -> tuple[float, float, float]:
    """Value and lengths of the whiskers; a percentile interval may miss its own value by a rounding."""
    return (
        100 * estimate.value,
        100 * max(0.0, estimate.value - estimate.low),
        100 * max(0.0, estimate.high - estimate.value),
    )


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _percent_axis(axes: Axes, label: str) -> None:
    axes.set_xlim(0, 101)
    axes.set_xlabel(label)
    axes.grid(axis="x", color=NEUTRAL, alpha=0.25)


def _token_axis(axes: Axes, ticks: Sequence[float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens per picture (log scale)")
    axes.margins(x=0.12)


def _dimension_names(codes: Sequence[str]) -> list[str]:
    return [DIMENSIONS[code].replace(" and ", "\nand ").replace(" ", "\n", 1) for code in codes]


def _svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element whose ids start with `name` and whose ink is the page's text colour."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r'(url\(|href=")#', rf"\1#{name}-", text).replace('xlink:href="#', 'href="#')
