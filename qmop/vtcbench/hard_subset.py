"""The hard subset: items that the reference answers at full resolution and misses on the down-sampled picture.

The protocol of VTC-Bench (Liao et al., arXiv 2510.07143), a filter over another benchmark that is not to be confused
with this one: what plain down-sampling to as many tokens solves tells nothing about a compressor. Group A is the hard
one, group B is what the reference answers both ways; items that it misses at full resolution leave both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qmop.vtcbench.records import RIGHT, Record
from qmop.vtcbench.statistics import RESAMPLES, Estimate, accuracy


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The split of a suite's items by what the reference sees; `items == len(hard) + len(easy) + dropped`."""

    hard: frozenset[str]
    """Group A: right at full resolution, wrong down-sampled."""
    easy: frozenset[str]
    """Group B: right both ways."""
    dropped: int
    """Wrong at full resolution."""

    @property
    def items(self) -> int:
        """Items that were split."""
        return len(self.hard) + len(self.easy) + self.dropped


@dataclass(frozen=True, kw_only=True)
class HardRow:
    """One label on both groups.

    Attributes:
        label: whose answers.
        hard: accuracy on group A, the protocol's score; None where the group is empty.
        easy: accuracy on group B.
        missing: items of both groups without a record; they count as wrong.
        chance: accuracy of a uniform guess on group A, which is not 0 where there are choices.
    """

    label: str
    hard: Estimate | None
    easy: Estimate | None
    missing: int
    chance: float

    @property
    def gap(self) -> float | None:
        """Accuracy on group B minus that on group A."""
        return None if self.hard is None or self.easy is None else self.easy.value - self.hard.value


def split(full: Iterable[Record], small: Iterable[Record]) -> Groups:
    """Split the items by the reference's records at full resolution and on down-sampled pictures.

    Raises:
        ValueError: if either holds an item twice, or the two do not hold the same items.
    """
    seen, blurred = _by_key(full, "full resolution"), _by_key(small, "down-sampled")
    if lost := set(seen) ^ set(blurred):
        raise ValueError(
            f"the reference's two runs differ in {len(lost)} items, such as {min(lost)}: judge one suite and its "
            "down-sampled copy, both to their ends"
        )
    known = {key for key, record in seen.items() if record.right}
    still = {key for key in known if blurred[key].right}
    return Groups(hard=frozenset(known - still), easy=frozenset(still), dropped=len(seen) - len(known))


def hard_rows(records: Iterable[Record], groups: Groups, *, seed: int = 0, resamples: int = RESAMPLES) -> list[HardRow]:
    """Every label on both groups, in the order in which labels come; an item without record counts as wrong.

    Args:
        records: of the full-resolution suite, any number of labels.
        groups: from `split`.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    labels: dict[str, dict[str, Record]] = {}
    chances: dict[str, float] = {}
    for record in records:
        labels.setdefault(record.label, {})[record.key] = record
        chances[record.key] = record.chance
    chance = float(np.mean([chances.get(key, 0.0) for key in sorted(groups.hard)])) if groups.hard else 0.0

    def estimate(answers: Mapping[str, Record], keys: frozenset[str]) -> Estimate | None:
        scores = [float(key in answers and answers[key].score >= RIGHT) for key in sorted(keys)]
        return accuracy(scores, seed, resamples) if scores else None

    return [
        HardRow(
            label=label,
            hard=estimate(answers, groups.hard),
            easy=estimate(answers, groups.easy),
            missing=sum(key not in answers for key in groups.hard | groups.easy),
            chance=chance,
        )
        for label, answers in labels.items()
    ]


def hard_table(rows: Sequence[HardRow], groups: Groups) -> str:
    """The rows as Markdown, in per cent, under the counts of the groups."""
    counts = (
        f"{groups.items} items: {len(groups.hard)} hard (right, but wrong when down-sampled), {len(groups.easy)} easy "
        f"(right both ways), {groups.dropped} left out (wrong at full resolution)"
    )
    lines = [
        counts,
        "",
        "| label | hard | 95 % interval | easy | easy - hard | missing | chance |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        span = f"{100 * row.hard.low:.1f} to {100 * row.hard.high:.1f}" if row.hard else "-"
        cells = [_value(row.hard), span, _value(row.easy), _percent(row.gap)]
        lines.append(f"| {row.label} | {' | '.join(cells)} | {row.missing} | {_percent(row.chance)} |")
    return "\n".join(lines) + "\n"


def _by_key(records: Iterable[Record], what: str) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for record in records:
        if record.key in found:
            raise ValueError(f"the reference's {what} run has item {record.key} twice: give the records of one label")
        found[record.key] = record
    return found


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _value(estimate: Estimate | None) -> str:
    return _percent(None if estimate is None else estimate.value)
