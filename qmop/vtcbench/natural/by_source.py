"""What a report tells by source of a natural suite: mean retention over sources, and MME's own score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qmop.vtcbench.grouping import mean_by
from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.natural.mme import SOURCE
from qmop.vtcbench.natural.mme_score import MMEScore, mme_score
from qmop.vtcbench.natural.sources import READERS
from qmop.vtcbench.records import Record
from qmop.vtcbench.statistics import mean_retention


def source_of(record: Record) -> str:
    """The natural source that an item is of, by its task; nothing for rendered items and those of a corpus."""
    name = record.task.partition("/")[0]
    return name if name in READERS and record.dimension in DIMENSIONS else ""


def retention_over_sources(reference: Mapping[str, Record], other: Mapping[str, Record]) -> float | None:
    """The mean over sources of accuracy by the reference's, as the paper averages its benchmarks; 1 is no loss.

    Args:
        reference: records of the uncompressed model by item key.
        other: records of the row.

    Returns:
        None where both have no item of a source in common, or the reference has no item of some source right.
    """
    shared = [key for key in reference if key in other and source_of(reference[key])]
    mine = mean_by((source_of(other[key]), other[key].score) for key in shared)
    theirs = mean_by((source_of(reference[key]), reference[key].score) for key in shared)
    return mean_retention(mine, theirs) / 100 if mine and all(theirs.values()) else None


def mme_of(records: Sequence[Record]) -> MMEScore | None:
    """MME's own score of one label's records; None where none is of MME."""
    return mme_score(records) if any(source_of(record) == SOURCE for record in records) else None
