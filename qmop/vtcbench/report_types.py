"""What a report holds, as plain data: the renderings (Markdown, JSON, HTML, lmms-eval) read nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qmop.vtcbench.statistics import Comparison, Estimate

if TYPE_CHECKING:  # both bring torch along, which a report does without
    from qmop.cost import Cost
    from qmop.profiler import Profile
    from qmop.vtcbench.natural.mme_score import MMEScore


@dataclass(frozen=True, kw_only=True)
class RouterUse:
    """What a router did over the items of a row."""

    entropy: float
    """Mean over items of the entropy of the weights, in bits: 0 where one branch has all, log2 of the branches where
    all have the same."""
    choices: Mapping[str, float]
    """Share of items by the branches that ran, such as `resampler + prune`, the most frequent first."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One step of a curve: the items whose difficulty is from `low` to `high`, on average `difficulty`."""

    difficulty: float
    low: float
    high: float
    chance: float
    """Of these very items, since families of several answers meet in one curve."""
    accuracies: Mapping[str, Estimate]
    """By label."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Accuracy against difficulty, for the tasks of a dimension whose difficulty has one unit."""

    dimension: str
    unit: str
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class TaskFamily:
    """A kind of question: what the items of one `task` have in common.

    Attributes:
        dimensions: codes of the dimensions that its items belong to; none where they carry none.
        n: its items over all rows together.
        chance: accuracy of a uniform guess on them.
    """

    dimensions: tuple[str, ...]
    n: int
    chance: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One label: a checkpoint with a method and a token budget."""

    label: str
    checkpoint: str
    method: str
    budget: int
    visual_tokens: float
    """Mean of the tokens that the language model really saw."""
    tokens_span: tuple[int, int]
    """Fewest and most of them over the items."""
    micro: Estimate
    macro: Estimate | None
    """None where no item carries a dimension."""
    dimensions: Mapping[str, Estimate]
    """Over the items of all levels."""
    levels: Mapping[str, Estimate]
    """Accuracy on core, hard and held-out items apart; empty where the report has one level alone."""
    tasks: Mapping[str, Estimate]
    sources: Mapping[str, Estimate]
    """By source of a natural suite; empty for other suites."""
    mean_retention: float | None
    """The mean over sources of accuracy by the reference's on the items that both have, the average of the paper's
    Tables 1 and 2; None without sources or reference."""
    mme: MMEScore | None
    """MME's own score, where the suite holds items of MME."""
    unparsable: int
    unanswered: Mapping[str, str]
    """Keys of items that could not be answered at all, with the reason; they count as wrong."""
    missing: int
    """Items that other rows have and this one lacks."""
    seconds: float
    against_reference: Comparison | None
    """On the items that both have; None for the reference itself and where there is none."""
    visual_gain: Estimate | None
    """Accuracy minus the blind row's on the items that both have."""
    branch_weights: Mapping[str, Mapping[str, float]]
    """Mean weight per branch, for each dimension and for `all`; empty where the method has no router."""
    router: RouterUse | None
    cost: Cost | None
    """By the checkpoint's configuration, for one picture and one question; None where it is not known."""
    profile: Profile | None
    """Measured; None where nobody did."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows of one token budget, `other` against `base`."""

    base: str
    other: str
    comparison: Comparison


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole evaluation: rows in the order in which their labels were first seen, the reference row first."""

    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    chance: Mapping[str, float]
    """Accuracy of a uniform guess per dimension, for `micro`, and where there are dimensions for `macro`."""
    tasks: Mapping[str, TaskFamily]
    """In the order of the dimensions."""
    sources: Mapping[str, int]
    """Items per source of a natural suite over all rows together."""
    counts: Mapping[str, int]
    """Items per dimension over all rows together; items without a dimension count in the micro average alone."""
    levels: Mapping[str, int]
    """Items per level over all rows together, one level or several."""
    level_chance: Mapping[str, float]
    curves: tuple[Curve, ...]
    """Accuracy against difficulty; held-out items are left out, since they are hard for another reason."""
    items: int
    reference: str
    blind: str
    floor: str | None
    """Label of a second run of the reference, of another seed: what the two lose to each other no method is to blame
    for. None where there is none."""
    suite_digest: str
    seed: int
    resamples: int
    versions: Mapping[str, str]
    provenance: Mapping[str, str]
    """Whatever else the caller wants told: recipe hash, command, suite seed."""

    def row(self, label: str) -> Row | None:
        """The row of a label, if there is one."""
        return next((row for row in self.rows if row.label == label), None)

    @property
    def floors(self) -> Comparison | None:
        """The second run of the reference against the first: its loss and gain are the floors of the other rows'."""
        found = self.row(self.floor) if self.floor else None
        return found.against_reference if found else None


def standing(row: Row, report: Report) -> str:
    """How a row stands to the reference, in words."""
    if row.label == report.reference:
        return "reference"
    if row.against_reference is None:
        return f"no {report.reference} row"
    words = verdict(row.against_reference, report.reference)
    return f"second run of the reference: {words}" if row.label == report.floor else words


def verdict(comparison: Comparison, base: str = "") -> str:
    """A comparison in words that claim no more than the test does; `base` is named where it is not plain."""
    p = "p < 0.001" if comparison.p_value < 0.001 else f"p = {comparison.p_value:.3f}"  # noqa: PLR2004 - usual bound
    if comparison.within_noise:
        return f"within noise{f' of {base}' if base else ''} ({p})"
    return f"{'above' if comparison.difference.value > 0 else 'below'}{f' {base}' if base else ''} ({p})"
