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
_MARKERS = "osD^vPX"
"""Seven to eight colours, so that 48 rows differ in one or the other."""
_GLYPHS = dict(zip(_MARKERS, "\u25cf\u25a0\u25c6\u25b2\u25bc\u271a\u2716", strict=True))
INK = "#010203"
"""Stands for the page's own text colour until the SVG is written."""
_BRANCH_COLOURS = ("#5667b3", "#c2a83e", "#9b9ea6", "#a8564f", "#4f8f8b")
WIDTH = 4.4
"""Of a figure, in inches."""
STYLE: Any = {  # Any: matplotlib types its keys as one long literal
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


def glyphs(report: Report) -> dict[str, str]:
    """The markers as characters, for a legend in words."""
    return {label: _GLYPHS[marker] for label, marker in markers(report).items()}


def accuracy_by_dimension(report: Report) -> str | None:
    """Dots with intervals, one group per dimension, chance as a dotted line; SVG text, None without dimensions."""
    codes = list(report.counts)
    if not codes:
        return None
    step = len(report.rows) + 1.2
    with mpl.rc_context(STYLE):
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
        return as_svg(figure, "dimensions")


def branch_weights(report: Report) -> str | None:
    """Mean router weight per branch and dimension, one panel per row that has a router; SVG text, None if none has."""
    rows = [row for row in report.rows if row.branch_weights]
    if not rows:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.5 + 1.75 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
        for axes, row in zip(panels, rows, strict=True):
            _stack(axes, row)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
        return as_svg(figure, "branches")


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
    value, below, above = percent(estimate)
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


def upright_dot(axes: Axes, at: float, estimate: Estimate, label: str, report: Report) -> None:
    """A row's accuracy over some figure of it, with its interval."""
    value, below, above = percent(estimate)
    axes.errorbar(
        [at],
        [value],
        yerr=[[below], [above]],
        fmt=markers(report)[label],
        color=colours(report)[label],
        markersize=4.5,
        capsize=2,
        linewidth=1.2,
    )


def seeing(report: Report) -> list[Row]:
    """The rows that see pictures."""
    return [row for row in report.rows if row.label != report.blind and row.visual_tokens > 0]


def percent(estimate: Estimate) -> tuple[float, float, float]:
    """Value and lengths of the whiskers; a percentile interval may miss its own value by a rounding."""
    return (
        100 * estimate.value,
        100 * max(0.0, estimate.value - estimate.low),
        100 * max(0.0, estimate.high - estimate.value),
    )


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _percent_axis(axes: Axes, label: str) -> None:
    axes.set_xlim(0, 101)
    axes.set_xlabel(label)
    axes.grid(axis="x", color=NEUTRAL, alpha=0.25)


def _dimension_names(codes: Sequence[str]) -> list[str]:
    return [DIMENSIONS[code].replace(" and ", "\nand ").replace(" ", "\n", 1) for code in codes]


def as_svg(figure: Figure, name: str) -> str:
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
