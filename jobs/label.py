"""Label samples for the natural suite of VTCBench: a judge accepts or rejects each and names exactly one dimension.

Any OpenAI-compatible endpoint with a model that sees will do. Answers are appended to the labels file one by one; the
same command goes on where it stopped. Correct the file by hand, then give it to `qmop suite`.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cluster.bounds import require_above, require_at_least
from cluster.progress import Progress
from cluster.storage import is_s3
from jobs.labelling import Endpoint, Judge
from jobs.labelling_run import LabelRun, Outcome
from qmop.vtcbench.natural.labels import Name, rank, read_labels
from qmop.vtcbench.natural.samples import Fault, Sample
from qmop.vtcbench.natural.sources import Sources

INCOMPLETE = 1


@dataclass(frozen=True, kw_only=True)
class LabelRecipe:
    """A labelling.

    Attributes:
        sources: your copies of the sources.
        labels: JSONL file that receives the labels; what it already holds is not asked again.
        endpoint: base URL of an OpenAI-compatible service.
        model: the judge's name there; it must take pictures.
        key_env: environment variable that holds the key; a service without keys needs none.
        per_source: label so many samples of each source, drawn at random; all when absent.
        seed: which ones are drawn.
        concurrency: requests under way at once.
        retries: times that a request is repeated after a passing failure, waiting ever longer.
        attempts: unusable answers after which a sample is given up until the next run.
        timeout_s: seconds that one request may take.
        max_tokens: longest answer, in tokens.
        give_up_after: failures in a row after which the run stops, because the service does not work.
    """

    labels: str
    model: str
    sources: Sources = field(default_factory=Sources)
    endpoint: str = "https://api.openai.com/v1"
    key_env: str = "OPENAI_API_KEY"
    per_source: int | None = None
    seed: int = 0
    concurrency: int = 8
    retries: int = 6
    attempts: int = 3
    timeout_s: float = 120.0
    max_tokens: int = 300
    give_up_after: int = 20

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a ValueError that names the field."""
        if not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint is {self.endpoint!r}, expected a URL such as http://127.0.0.1:8000/v1")
        if is_s3(self.labels):
            raise ValueError(f"labels is {self.labels}, but labels are appended to a local file: name a local path")
        if Path(self.labels).suffix.lower() == ".csv":
            raise ValueError(f"labels is {self.labels}, but labels are appended as JSONL: name a .jsonl file")
        require_at_least(self, 1, "concurrency", "attempts", "max_tokens", "give_up_after", "per_source")
        require_at_least(self, 0, "retries")
        require_above(self, 0, "timeout_s")


RECIPE = LabelRecipe


def run(recipe: LabelRecipe, progress: Progress) -> int:
    """Label; 1 if samples are left without a verdict."""
    outcome = label(recipe, progress)
    tell(outcome, progress)
    return INCOMPLETE if outcome.failed else 0


def label(recipe: LabelRecipe, progress: Progress) -> Outcome:
    """Ask about every sample that has no label yet."""
    file = Path(recipe.labels)
    repair(file, progress)
    known = {name: one.decision for name, one in read_labels(file).items()} if file.is_file() else {}
    with progress.stage("reading the sources"):
        wanted, faults = _wanted(recipe)
    todo = wanted - set(known)
    done = Counter(known[name] for name in wanted & set(known))
    progress.say(
        f"{len(wanted)} samples to label, {len(wanted) - len(todo)} of them are labelled already; "
        f"{sum(faults.values())} rows of the sources are no samples"
    )
    endpoint = Endpoint(
        url=recipe.endpoint, model=recipe.model, key=os.environ.get(recipe.key_env) or "none", key_env=recipe.key_env
    )
    labeller = LabelRun(file, endpoint.model, concurrency=recipe.concurrency, give_up_after=recipe.give_up_after)
    if todo:
        file.parent.mkdir(parents=True, exist_ok=True)
        with progress.stage(f"labelling with {recipe.model} at {recipe.endpoint}"):
            asyncio.run(_ask(recipe, endpoint, labeller, todo, progress))
    return labeller.outcome(planned=len(wanted), reused=done, faults=faults)


async def _ask(
    recipe: LabelRecipe, endpoint: Endpoint, labeller: LabelRun, todo: set[Name], progress: Progress
) -> None:
    async with endpoint.client(recipe.retries, recipe.timeout_s) as client:
        judge = Judge(client, endpoint, attempts=recipe.attempts, max_tokens=recipe.max_tokens)
        await labeller.run(_samples(recipe.sources, todo), len(todo), judge, progress)


def tell(outcome: Outcome, progress: Progress) -> None:
    """The counts, which add up."""
    progress.say(
        f"samples: {outcome.planned} planned = {outcome.accepted} accepted + {outcome.rejected} rejected + "
        f"{sum(outcome.failed.values())} without a verdict"
    )
    for what, counts in (("no sample", outcome.faults), ("without a verdict", outcome.failed)):
        for reason, count in sorted(counts.items()):
            progress.say(f"{what}: {count} x {reason}")


def repair(file: Path, progress: Progress) -> None:
    """End the last line: an editor may have left out its end, and an interrupted run half of it, which is cut off."""
    if not file.is_file() or not (data := file.read_bytes()) or data.endswith(b"\n"):
        return
    whole = data.rfind(b"\n") + 1
    with file.open("r+b") as stream:
        try:
            json.loads(data[whole:])
        except ValueError:
            progress.say(f"{file} ends in half a line, which is cut off: {data[whole:][:60].decode(errors='replace')}")
            stream.truncate(whole)
        else:
            stream.seek(0, os.SEEK_END)
            stream.write(b"\n")


def _wanted(recipe: LabelRecipe) -> tuple[set[Name], Counter[str]]:
    """Names of the samples to label, and the faults by source and reason."""
    names: dict[str, list[str]] = {}
    faults: Counter[str] = Counter()
    for one in recipe.sources.read():
        if isinstance(one, Fault):
            faults[f"{one.source}: {one.reason}"] += 1
        else:
            names.setdefault(one.source, []).append(one.id)
    drawn = {
        source: sorted(ids, key=lambda one, source=source: rank(recipe.seed, source, one))[: recipe.per_source]  # type: ignore[misc]
        for source, ids in names.items()
    }
    return {(source, one) for source, ids in drawn.items() for one in ids}, faults


def _samples(sources: Sources, todo: set[Name]) -> Iterator[Sample]:
    return (one for one in sources.read() if isinstance(one, Sample) and (one.source, one.id) in todo)
