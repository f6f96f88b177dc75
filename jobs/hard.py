"""Tell accuracy on the hard subset: items that the reference answers, but not on the down-sampled picture."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.bounds import require_at_least
from cluster.progress import Progress
from cluster.storage import join, write_atomic
from pipelines.evaluation.store import read_index
from qmop.vtcbench.hard_subset import hard_rows, hard_table, split
from qmop.vtcbench.records import Record, require_label

TABLE = "hard.md"


@dataclass(frozen=True, kw_only=True)
class HardRecipe:
    """A report on the hard subset.

    Attributes:
        results: results store of the full-resolution suite, with the reference and whatever is to be held against it.
        downsampled: results store of the reference on the suite that `qmop suite shrink` made of it.
        reference: label of the uncompressed model, in both stores.
        output: folder of the table; the results store itself when absent.
        seed: of the bootstrap.
    """

    results: str
    downsampled: str
    reference: str = "uncompressed"
    output: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(self, 0, "seed")


RECIPE = HardRecipe


def run(recipe: HardRecipe, progress: Progress) -> int:
    """Print the table and write it."""
    records, _ = read_index(recipe.results)
    small, _ = read_index(recipe.downsampled)
    groups = split(_of(records, recipe.reference, recipe.results), _of(small, recipe.reference, recipe.downsampled))
    table = hard_table(hard_rows(records, groups, seed=recipe.seed), groups)
    place = join(recipe.output or recipe.results, TABLE)
    write_atomic(place, table.encode())
    print(table)  # noqa: T201 - the table is the job's result
    progress.say(f"hard subset: {place}")
    return 0


def _of(records: list[Record], label: str, store: str) -> list[Record]:
    require_label("reference", label, records, store)
    return [record for record in records if record.label == label]
