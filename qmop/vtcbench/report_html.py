"""The report as one self-contained page: no script, no font, no address to fetch, light or dark as the reader likes."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from math import isclose

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qmop.vtcbench import panels, plots
from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.records import Record
from qmop.vtcbench.report_tables import ABOUT_SOURCES, asides, named
from qmop.vtcbench.report_types import Report, standing, verdict
from qmop.vtcbench.routing import BRANCH_NAMES, names_of
from qmop.vtcbench.shards import picture_kind
from qmop.vtcbench.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What one row answered to a sample."""

    label: str
    prediction: str
    right: bool
    branch_weights: Mapping[str, float]
    """Weight per branch for this very question; empty where there is no router."""
    drawing: bytes | None = None
    """What was kept, drawn over the picture; PNG, JPEG or WebP bytes."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An item to show, with the answers of every row."""

    key: str
    dimension: str
    image: bytes
    """PNG, JPEG or WebP bytes."""
    question: str
    answer: str
    replies: tuple[Reply, ...]


def pick_samples(
    records: Iterable[Record],
    pictures: Mapping[str, bytes],
    count: int = 6,
    branches: Sequence[str] = BRANCH_NAMES,
) -> tuple[Sample, ...]:
    """Choose items worth a look: the dimensions in turn, those first on which the rows disagree.

    Args:
        records: of all rows.
        pictures: image bytes by item key; items without a picture are passed over.
        count: how many samples at most.
        branches: names of the router's branches.
    """
    chosen = _ranked(record for record in records if record.key in pictures)
    return tuple(_sample(found, pictures[found[0].key], branches) for found in chosen[:count])


def worth_showing(records: Iterable[Record], count: int = 6) -> list[str]:
    """Keys of the items that `pick_samples` would choose if every item had a picture."""
    return [found[0].key for found in _ranked(records)[:count]]


def _ranked(records: Iterable[Record]) -> list[list[Record]]:
    """The records of each item, those worth a look first."""
    by_key: dict[str, list[Record]] = {}
    for record in records:
        by_key.setdefault(record.key, []).append(record)
    ranked = sorted(by_key.values(), key=_disagreement, reverse=True)
    lanes = [[found for found in ranked if found[0].dimension == code] for code in DIMENSIONS]
    lanes.append([found for found in ranked if found[0].dimension not in DIMENSIONS])
    return [found for turn in zip_longest(*lanes) for found in turn if found]


def with_drawings(samples: Sequence[Sample], drawings: Mapping[tuple[str, str], bytes]) -> tuple[Sample, ...]:
    """Samples with what each row kept drawn over the picture; drawings by key and label."""
    return tuple(
        replace(
            sample,
            replies=tuple(replace(reply, drawing=drawings.get((sample.key, reply.label))) for reply in sample.replies),
        )
        for sample in samples
    )


def to_html(report: Report, samples: Sequence[Sample] = ()) -> str:
    """The report as a page.

    Args:
        report: what to show.
        samples: items to show with their pictures and answers, see `pick_samples`.

    Returns:
        HTML text that refers to nothing outside itself.
    """
    page = Environment(
        loader=PackageLoader("qmop.vtcbench"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters.update(percent=_percent, interval=_interval, data_uri=_data_uri, short=_short)
    return page.get_template("report.html.jinja").render(
        report=report,
        codes=list(report.counts),
        names=DIMENSIONS,
        colours={k: v.replace(plots.INK, "currentColor") for k, v in plots.colours(report).items()},
        glyphs=plots.glyphs(report),
        standing={row.label: standing(row, report) for row in report.rows},
        asides=asides,
        named=named,
        about_sources=ABOUT_SOURCES,
        mme=any(row.mme for row in report.rows),
        pairs=[(pair, verdict(pair.comparison)) for pair in report.pairs],
        figures=_figures(report),
        costed=any(row.cost for row in report.rows),
        measured=next((row.profile for row in report.rows if row.profile), None),
        samples=samples,
    )


def _figures(report: Report) -> list[tuple[str, str, Markup]]:
    """What each plot shows, its caption and its SVG; plots without data are left out."""
    blind = f", dashed: {report.blind}" if report.row(report.blind) else ""
    found = [
        (
            "Accuracy of every row in each dimension",
            "Accuracy by dimension over the items of all levels, with 95 % intervals.",
            plots.accuracy_by_dimension(report),
        ),
        (
            "Accuracy against visual tokens",
            f"Accuracy against visual tokens; dotted: chance{blind}; a thin line joins the budgets of one method.",
            panels.accuracy_by_tokens(report),
        ),
        (
            "Accuracy against difficulty",
            (
                "Accuracy against the difficulty of the item, such as the size of the asked-for detail; dotted: chance "
                "of the very items, since tasks mix. Items of held-out combinations are left out."
            ),
            panels.accuracy_by_difficulty(report),
        ),
        (
            "Accuracy against measured prefill",
            "Accuracy against the measured time of prefill; the line is the Pareto front.",
            panels.accuracy_by_prefill(report),
        ),
        (
            "Accuracy against computed cost",
            (
                "Accuracy against computed cost: multiply-accumulates of the method and of the language model over the "
                "visual tokens; the line is the Pareto front."
            ),
            panels.accuracy_by_macs(report),
        ),
        (
            "Mean router weight per branch and dimension",
            "Mean weight that the router gives each branch, by dimension.",
            plots.branch_weights(report),
        ),
    ]
    return [(name, caption, Markup(svg)) for name, caption, svg in found if svg is not None]  # noqa: S704 - our own plots


def _disagreement(found: Sequence[Record]) -> tuple[int, bool]:
    right = sum(record.right for record in found)
    return min(right, len(found) - right), any(record.branch_weights for record in found)


def _sample(found: Sequence[Record], image: bytes, branches: Sequence[str]) -> Sample:
    first = found[0]
    replies = tuple(
        Reply(
            label=record.label,
            prediction=record.prediction,
            right=record.right,
            branch_weights=_named(record.branch_weights, branches),
        )
        for record in found
    )
    return Sample(
        key=first.key,
        dimension=first.dimension,
        image=image,
        question=first.question,
        answer=first.answer,
        replies=replies,
    )


def _named(weights: tuple[float, ...] | None, branches: Sequence[str]) -> dict[str, float]:
    """Weights by branch name; branches that were left out are left out here too."""
    if weights is None:
        return {}
    named = zip(names_of(len(weights), branches), weights, strict=True)
    return {name: weight for name, weight in named if not isclose(weight, 0.0)}


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _short(value: float) -> str:
    """Three digits that count, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")  # noqa: PLR2004 - three digits


def _interval(estimate: Estimate) -> str:
    joint = "\N{EN DASH}" if estimate.low >= 0 else " to "
    return f"{100 * estimate.low:.1f}{joint}{100 * estimate.high:.1f}"


def _data_uri(image: bytes) -> str:
    kind = picture_kind(image).replace("jpg", "jpeg")
    return f"data:image/{kind};base64," + base64.b64encode(image).decode()
