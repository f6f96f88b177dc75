"""Prove what a run was trained on: no sample missing, none twice, all in the order of its seed."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.progress import Progress
from pipelines.corpus.audit import audit


@dataclass(frozen=True, kw_only=True)
class AuditRecipe:
    """What to prove.

    Attributes:
        ledger: folder of a ledger, such as `<run>/ledger/tune`; local or s3://. The corpora that it names must still
            have their manifests; no shard is read.
    """

    ledger: str


RECIPE = AuditRecipe


def run(recipe: AuditRecipe, progress: Progress) -> int:
    """Hold the ledger against the manifests; what does not fit is a sentence and exit code 2."""
    found = audit(recipe.ledger)
    workers = ", ".join(map(str, found.worlds))
    progress.say(
        f"{found.steps} steps and {found.samples} samples ({found.epochs:.3f} epochs) are accounted for, each once and "
        f"in its place; {found.proved_shards} whole shards proved; {found.attempts} attempts on {workers} workers, "
        f"{found.repeated} steps taken again"
    )
    for corpus, shuffle in enumerate(found.shuffles):
        progress.say(
            f"shuffle of corpus {corpus + 1}: mean rank correlation {shuffle.within:.3f} inside its "
            f"{shuffle.windows} windows, {shuffle.shards:.3f} of its shards, {shuffle.across:.3f} from one epoch to "
            f"the next; the largest is {shuffle.worst:.1f} standard deviations of a perfect shuffle"
        )
    return 0
