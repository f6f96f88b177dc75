"""The curves of a run, drawn from its metrics.jsonl: what happened, in one picture."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from cluster.storage import read_bytes
from pipelines.training.recipe import StageName
from pipelines.training.sight import scalars_of

_COLOURS = ("#2b7bba", "#e08a00", "#1a9b76", "#c8609b")
_FAINT = "#8a8f98"
_WIDTH, _HEIGHT, _COLUMNS, _DPI = 5.4, 2.6, 2, 100


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One field of the picture.

    Attributes:
        title: above it.
        names: scalars drawn in it, or what their names begin with.
        logarithmic: whether the vertical axis is.
        share: whether the vertical axis goes from 0 to 1.
    """

    title: str
    names: tuple[str, ...]
    logarithmic: bool = False
    share: bool = False


_PANELS = (
    Panel(title="loss per answer token", names=("train/loss",), logarithmic=True),
    Panel(title="learning rate", names=("train/learning_rate/",)),
    Panel(title="gradient norm", names=("train/grad_norm",), logarithmic=True),
    Panel(title="router temperature and noise", names=("router/temperature", "router/noise")),
    Panel(title="mean weight of each branch", names=("router/weight/",), share=True),
    Panel(title="router entropy, nats (dotted: all branches alike)", names=("router/entropy",)),
)


def curves(metrics: str | Path) -> bytes:
    """Loss, learning rates, gradient norm, temperature, branch weights and entropy over the steps of all stages.

    Args:
        metrics: a run's metrics.jsonl, local or in S3.

    Returns:
        A PNG.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if no step is noted in it.
    """
    notes = [json.loads(text) for text in read_bytes(metrics).splitlines() if text.strip()]
    steps, starts = in_order(note for note in notes if note["kind"] == "step")
    if not steps:
        raise ValueError(f"{metrics} notes no step: train for at least log_every steps first")
    series = _series(steps)
    panels = [panel for panel in _PANELS if _drawn(panel, series)]
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(_WIDTH * _COLUMNS, _HEIGHT * rows), layout="constrained")
    fields: list[Axes] = list(figure.subplots(rows, _COLUMNS, squeeze=False, sharex=True).flat)
    for panel, axes in zip(panels, fields, strict=False):
        _draw(axes, panel, series, starts)
    for unused in fields[len(panels) :]:
        unused.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def in_order(notes: Iterable[Mapping[str, Any]]) -> tuple[dict[int, Mapping[str, Any]], dict[str, int]]:
    """Notes of steps by their step over all stages, and how many steps lie before each stage.

    Where a run went back to an earlier step, what it had noted from there on is forgotten.
    """
    kept: dict[int, Mapping[str, Any]] = {}
    notes = list(notes)
    lengths = {note["stage"]: note["steps"] for note in notes}
    stages = [stage for stage in get_args(StageName) if stage in lengths]
    starts = {stage: sum(lengths[before] for before in stages[:place]) for place, stage in enumerate(stages)}
    for note in notes:
        step = starts[note["stage"]] + note["step"]
        kept = {at: old for at, old in kept.items() if at < step} if step <= max(kept, default=0) else kept
        kept[step] = note
    return kept, starts


def _series(steps: Mapping[int, Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = {}
    for step, note in steps.items():
        for name, value in scalars_of(note).items():
            series.setdefault(name, []).append((step, value))
    return series


def _drawn(panel: Panel, series: Mapping[str, Any]) -> list[str]:
    """Names of the series in a panel."""
    return [
        name
        for name in series
        if any(name == wanted or name.startswith(f"{wanted.rstrip('/')}/") for wanted in panel.names)
    ]


def _draw(axes: Axes, panel: Panel, series: Mapping[str, list[tuple[int, float]]], starts: Mapping[str, int]) -> None:
    names = _drawn(panel, series)
    for name, colour in zip(names, _COLOURS, strict=False):
        label = name.rsplit("/", 1)[-1]
        for part in _by_stage(series[name], starts):
            axes.plot(*zip(*part, strict=True), color=colour, linewidth=1.4, marker=".", markersize=3, label=label)
            label = "_"  # the legend names a curve once
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("optimiser step", fontsize=9)
    _ruled(axes, starts)
    if panel.logarithmic and all(value > 0 for name in names for _, value in series[name]):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    if panel.share:
        axes.set_ylim(0, 1)
    if "router/entropy" in names:
        most = math.log(max(2, sum(name.startswith("router/weight/") for name in series)))
        axes.axhline(most, color=_FAINT, linestyle=":")
        axes.set_ylim(0, 1.15 * most)
    if len(names) > 1:
        axes.legend(frameon=False, fontsize=8, ncols=len(names))


def _by_stage(points: list[tuple[int, float]], starts: Mapping[str, int]) -> list[list[tuple[int, float]]]:
    """The points of each stage by themselves, so that no line joins one stage to the next."""
    parts: dict[int, list[tuple[int, float]]] = {}
    for step, value in points:
        parts.setdefault(max(start for start in starts.values() if start < step), []).append((step, value))
    return list(parts.values())


def _ruled(axes: Axes, starts: Mapping[str, int]) -> None:
    """Horizontal rules, and a broken line where a stage begins after another."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_FAINT, alpha=0.25)
    axes.tick_params(labelsize=8, labelbottom=True)
    for stage, start in starts.items():
        if start:
            axes.axvline(start, color=_FAINT, linewidth=1, linestyle="--")
            words: dict[str, Any] = {
                "xycoords": ("data", "axes fraction"),
                "rotation": 90,
                "fontsize": 8,
                "color": _FAINT,
            }
            axes.annotate(f"{stage} begins ", (start, 1), va="top", ha="right", **words)
