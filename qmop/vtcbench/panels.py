"""The report's plots of several panels: accuracy against tokens, against difficulty, and against cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.plots import INK, NEUTRAL, STYLE, WIDTH, as_svg, colours, markers, percent, seeing, upright_dot
from qmop.vtcbench.report_types import Curve, Report, Row
from qmop.vtcbench.statistics import Estimate

_ACROSS = 2
_NUDGE = 1.09
_WIDE = 8
"""From this ratio on a span of difficulties is drawn to a logarithmic scale."""


class Spot(NamedTuple):
    """A row in a plot of accuracy against cost."""

    label: str
    cost: float
    accuracy: float


def accuracy_by_tokens(report: Report) -> str:
    """Accuracy against visual tokens, one panel for all items and one per dimension; SVG text.

    Rows of equal tokens stand side by side; a thin line joins what one method reaches with several budgets.
    """
    names = ["micro", *report.counts]
    with mpl.rc_context(STYLE):
        figure, panels = _panels(len(names))
        for axes, name in zip(panels, names, strict=True):
            _tokens_panel(axes, name, report)
        figure.supxlabel("visual tokens per picture (log scale)", fontsize=9)
        figure.supylabel("accuracy in %", fontsize=9)
        return as_svg(figure, "tokens")


def accuracy_by_difficulty(report: Report) -> str | None:
    """Accuracy against difficulty, one panel per dimension and unit; SVG text, None where no item has a difficulty."""
    if not report.curves:
        return None
    with mpl.rc_context(STYLE):
        figure, panels = _panels(len(report.curves), height=1.75)
        for axes, curve in zip(panels, report.curves, strict=True):
            _curve_panel(axes, curve, report)
        figure.supylabel("accuracy in %", fontsize=9)
        return as_svg(figure, "difficulty")


def accuracy_by_macs(report: Report) -> str | None:
    """Accuracy against computed cost: the method's own MACs and those of the language model over visual tokens."""
    return _front(report, "macs", "method and language model, GMAC per picture (log scale)", _giga)


def accuracy_by_prefill(report: Report) -> str | None:
    """Accuracy against the measured time of prefill, in milliseconds per question."""
    return _front(report, "prefill", "measured prefill, ms per question (log scale)", _prefill)


def front(spots: Sequence[Spot]) -> list[Spot]:
    """The spots that no other beats in both cost and accuracy, the cheapest first; of equals the first one."""
    best: list[Spot] = []
    for spot in sorted(spots, key=lambda spot: (spot.cost, -spot.accuracy)):
        if not best or spot.accuracy > best[-1].accuracy:
            best.append(spot)
    return best


def side_by_side(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """Rows with the factor that keeps each from covering others of equal tokens."""
    groups: dict[float, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.visual_tokens, []).append(row)
    return [
        (row, _NUDGE ** (place - (len(group) - 1) / 2)) for group in groups.values() for place, row in enumerate(group)
    ]


def _tokens_panel(axes: Axes, name: str, report: Report) -> None:
    rows, found = seeing(report), {row.label: _estimate(row, name) for row in report.rows}
    for row, shift in side_by_side(rows):
        if (estimate := found[row.label]) is not None:
            upright_dot(axes, row.visual_tokens * shift, estimate, row.label, report)
    for tokens, values in _joined(rows, found):
        axes.plot(tokens, values, color=NEUTRAL, linewidth=0.8, zorder=0)
    if blind := found.get(report.blind):
        axes.axhline(100 * blind.value, color=NEUTRAL, linestyle="--", linewidth=1)
    axes.axhline(100 * report.chance[name], color=INK, linestyle=":", linewidth=1.2)
    ticks = sorted({row.visual_tokens for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks])
    axes.minorticks_off()
    axes.margins(x=0.15)
    _finish(axes, "all items (micro)" if name == "micro" else DIMENSIONS[name])


def _estimate(row: Row, name: str) -> Estimate | None:
    return row.micro if name == "micro" else row.dimensions.get(name)


def _joined(rows: Sequence[Row], found: dict[str, Estimate | None]) -> list[tuple[list[float], list[float]]]:
    """Tokens and mean accuracies of every method that has more than one budget."""
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        means: dict[float, list[float]] = {}
        for row in rows:
            if row.method == method and (estimate := found[row.label]) is not None:
                means.setdefault(row.visual_tokens, []).append(100 * estimate.value)
        if len(means) > 1:
            lines.append((sorted(means), [float(np.mean(means[tokens])) for tokens in sorted(means)]))
    return lines


def _curve_panel(axes: Axes, curve: Curve, report: Report) -> None:
    places = [point.difficulty for point in curve.points]
    axes.plot(places, [100 * point.chance for point in curve.points], color=INK, linestyle=":", linewidth=1.2)
    for row in report.rows:
        found = [
            (point.difficulty, point.accuracies[row.label]) for point in curve.points if row.label in point.accuracies
        ]
        if not found:
            continue
        ends = np.transpose([percent(estimate) for _, estimate in found])
        axes.errorbar(
            [place for place, _ in found],
            ends[0],
            yerr=ends[1:],
            fmt=markers(report)[row.label],
            linestyle="--" if row.label == report.blind else "-",
            color=colours(report)[row.label],
            markersize=3.5,
            linewidth=1.1,
            elinewidth=0.4,
        )
    if places[0] > 0 and places[-1] / places[0] > _WIDE:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
    axes.set_xlabel(curve.unit, fontsize=8)
    axes.margins(x=0.08)
    _finish(axes, DIMENSIONS[curve.dimension])


def _front(report: Report, name: str, label: str, cost: Callable[[Row], float | None]) -> str | None:
    found = [(row, value) for row in seeing(report) if (value := cost(row)) is not None]
    if not found:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        best = front([Spot(row.label, value, 100 * row.micro.value) for row, value in found])
        axes.plot(
            [spot.cost for spot in best],
            [spot.accuracy for spot in best],
            drawstyle="steps-post",
            color=NEUTRAL,
            linewidth=1,
            zorder=0,
        )
        for row, value in found:
            upright_dot(axes, value, row.micro, row.label, report)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
        axes.set_xlabel(label)
        axes.set_ylabel("micro accuracy in %")
        axes.margins(x=0.12)
        axes.grid(color=NEUTRAL, alpha=0.25)
        return as_svg(figure, name)


def _giga(row: Row) -> float | None:
    return None if row.cost is None else (row.cost.own + row.cost.language) / 1e9


def _prefill(row: Row) -> float | None:
    return None if row.profile is None else row.profile.stages["prefill"].median / row.profile.rows


def _panels(count: int, height: float = 1.6) -> tuple[Figure, list[Axes]]:
    """So many panels in two columns."""
    down = -(-count // _ACROSS)
    figure = Figure(figsize=(WIDTH, 0.35 + height * down), layout="constrained")
    places = list(figure.subplots(down, _ACROSS, squeeze=False).flat)
    for spare in places[count:]:
        spare.remove()
    return figure, places[:count]


def _finish(axes: Axes, title: str) -> None:
    axes.set_ylim(0, 104)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color=NEUTRAL, alpha=0.25)
    axes.set_title(title, fontsize=8, loc="left")
