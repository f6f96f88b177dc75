"""Records of many checkpoints to one report."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from qmop.vtcbench.curves import difficulty_curves
from qmop.vtcbench.grouping import by_dimension, by_level, chance_of, families, mean_by, scores_by
from qmop.vtcbench.natural.by_source import mme_of, retention_over_sources, source_of
from qmop.vtcbench.records import RIGHT, Record
from qmop.vtcbench.report_types import Pair, Report, Row
from qmop.vtcbench.routing import BRANCH_NAMES, mean_weights, router_use
from qmop.vtcbench.statistics import RESAMPLES, Comparison, Estimate, accuracy, compare, macro_accuracy

if TYPE_CHECKING:
    from qmop.cost import Cost
    from qmop.profiler import Profile

Answers = dict[str, Record]
"""The records of one label by item key."""


def summarise(
    records: Iterable[Record],
    reference: str = "uncompressed",
    blind: str = "blind",
    *,
    floor: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    branches: Sequence[str] = BRANCH_NAMES,
    unanswered: Mapping[str, Mapping[str, str]] | None = None,
    costs: Mapping[str, Cost] | None = None,
    profiles: Mapping[str, Profile] | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Report:
    """Gather records into a report.

    Args:
        records: of one suite, any number of labels, each label one checkpoint.
        reference: label of the uncompressed model; retention and information loss are told against it.
        blind: label of the model that saw no picture; visual gain is told against it.
        floor: label of a second run of the reference, of another seed: the floor of information loss.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        branches: names of the router's branches.
        unanswered: by label, keys of items that could not be answered, with the reason.
        costs: what a label costs by its configuration, where that is known.
        profiles: what was measured of a label.
        provenance: further facts to print.

    Raises:
        ValueError: if there are no records, they come from two suites, a label names two checkpoints, an item is
            judged twice under one label, or the floor is no second run of the reference.
    """
    labels = _by_label(records)
    if floor is not None:
        require_second_run((record for answers in labels.values() for record in answers.values()), reference, floor)
    first = next(iter(next(iter(labels.values())).values()))
    labels = dict(sorted(labels.items(), key=lambda pair: (pair[0] != reference, pair[0] != floor, pair[0] == blind)))
    items = {key: record for answers in labels.values() for key, record in answers.items()}
    levels = by_level(Counter(record.level for record in items.values()))
    maker = _RowMaker(
        labels, reference, blind, seed=seed, resamples=resamples, items=len(items), branches=branches, levels=levels
    )
    rows = tuple(
        replace(
            maker.row(label),
            unanswered=dict((unanswered or {}).get(label, {})),
            cost=(costs or {}).get(label),
            profile=(profiles or {}).get(label),
        )
        for label in labels
    )
    return Report(
        rows=rows,
        pairs=tuple(maker.pairs([row for row in rows if row.label not in {reference, blind, floor}])),
        chance=chance_of(items.values()),
        tasks=families(items.values()),
        sources=dict(Counter(name for record in items.values() if (name := source_of(record)))),
        counts=by_dimension(Counter(record.dimension for record in items.values())),
        levels=levels,
        level_chance=by_level(mean_by((record.level, record.chance) for record in items.values())),
        curves=difficulty_curves(
            (record for answers in labels.values() for record in answers.values()), seed=seed, resamples=resamples
        ),
        items=len(items),
        reference=reference,
        blind=blind,
        floor=floor,
        suite_digest=first.suite_digest,
        seed=seed,
        resamples=resamples,
        versions=_versions(),
        provenance=dict(provenance or {}),
    )


class _RowMaker:
    """Holds what every row of a report is measured against."""

    def __init__(
        self,
        labels: Mapping[str, Answers],
        reference: str,
        blind: str,
        *,
        seed: int,
        resamples: int,
        items: int,
        branches: Sequence[str],
        levels: Mapping[str, int],
    ) -> None:
        self._levels = levels
        self._labels, self._reference, self._blind = labels, reference, blind
        self._items, self._branches = items, branches
        self._seed, self._resamples = seed, resamples

    def row(self, label: str) -> Row:
        """Everything that the report says about one label."""
        records = list(self._labels[label].values())
        groups = by_dimension(scores_by((record.dimension, record.score) for record in records))
        levels = scores_by((record.level, record.score) for record in records) if len(self._levels) > 1 else {}
        tokens = [record.visual_tokens for record in records]
        against = self._compare(self._reference, label)
        gain = self._compare(self._blind, label)
        return Row(
            label=label,
            checkpoint=records[0].checkpoint,
            method=records[0].method,
            budget=records[0].budget,
            visual_tokens=float(np.mean(tokens)),
            tokens_span=(min(tokens), max(tokens)),
            micro=self._accuracy([record.score for record in records]),
            macro=macro_accuracy(groups, self._seed, self._resamples) if groups else None,
            dimensions={name: self._accuracy(scores) for name, scores in groups.items()},
            levels={name: self._accuracy(scores) for name, scores in by_level(levels).items()},
            tasks={
                name: self._accuracy(scores)
                for name, scores in scores_by((record.task, record.score) for record in records).items()
            },
            sources={
                name: self._accuracy(scores)
                for name, scores in scores_by((source_of(record), record.score) for record in records).items()
                if name
            },
            mean_retention=retention_over_sources(self._labels.get(self._reference, {}), self._labels[label])
            if label != self._reference
            else None,
            mme=mme_of(records),
            unparsable=sum(not record.parsable for record in records),
            unanswered={},
            missing=self._items - len(records),
            seconds=sum(record.seconds for record in records),
            against_reference=against,
            visual_gain=gain.difference if gain else None,
            branch_weights=mean_weights(records, self._branches),
            router=router_use(records, self._branches),
            cost=None,
            profile=None,
        )

    def pairs(self, rows: Sequence[Row]) -> list[Pair]:
        """Every two of these rows that have one budget."""
        found = []
        for base, other in combinations(rows, 2):
            if base.budget == other.budget:
                comparison = self._compare(base.label, other.label)
                if comparison is not None:
                    found.append(Pair(base=base.label, other=other.label, comparison=comparison))
        return found

    def _accuracy(self, scores: Sequence[float]) -> Estimate:
        return accuracy(scores, self._seed, self._resamples)

    def _compare(self, base: str, other: str) -> Comparison | None:
        if base == other or base not in self._labels:
            return None
        first, second = self._labels[base], self._labels[other]
        shared = [key for key in first if key in second]
        if not shared:
            return None
        return compare(
            [first[key].score for key in shared],
            [second[key].score for key in shared],
            right=RIGHT,
            seed=self._seed,
            resamples=self._resamples,
        )


def _by_label(records: Iterable[Record]) -> dict[str, Answers]:
    labels: dict[str, Answers] = {}
    suites: set[str] = set()
    for record in records:
        answers = labels.setdefault(record.label, {})
        if record.key in answers:
            raise ValueError(
                f"label {record.label!r} has two records of item {record.key}; give each run its own label"
            )
        answers[record.key] = record
        suites.add(record.suite_digest)
    if not labels:
        raise ValueError("there are no records to report on; evaluate a checkpoint first")
    if len(suites) > 1:
        names = ", ".join(sorted(digest[:12] for digest in suites))
        raise ValueError(f"the records come from {len(suites)} suites ({names}); report on one suite at a time")
    for label, answers in labels.items():
        checkpoints = {record.checkpoint for record in answers.values()}
        if len(checkpoints) > 1:
            names = ", ".join(sorted(digest[:12] for digest in checkpoints))
            raise ValueError(f"label {label!r} names several checkpoints ({names}); give each its own label")
    return labels


def require_second_run(records: Iterable[Record], reference: str, floor: str) -> None:
    """Refuse a floor that says nothing about seeds.

    Args:
        records: of all labels.
        reference: label of the uncompressed model.
        floor: label of a second run of it.

    Raises:
        ValueError: if one of the two has no records, both are one checkpoint, or they differ in method or budget.
    """
    runs = {record.label: record for record in records}
    way_out = "name a second training run of the reference that differs in its seed alone, or none"
    for label in (reference, floor):
        if label not in runs:
            raise ValueError(
                f"floor is {floor!r}, held against {reference!r}, but there are no records of {label!r}: {way_out}"
            )
    first, second = runs[reference], runs[floor]
    if first.checkpoint == second.checkpoint:
        raise ValueError(f"floor is {floor!r}, which is the same checkpoint as {reference!r}: {way_out}")
    if (first.method, first.budget) != (second.method, second.budget):
        raise ValueError(
            f"floor is {floor!r}, {second.method} of {second.budget} tokens, but {reference!r} is {first.method} of "
            f"{first.budget}: {way_out}"
        )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("qmop", "numpy", "scipy", "pyarrow"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
