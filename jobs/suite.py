"""Make VTCBench's natural suite from your own copies of its sources and a file of labels.

The suite stays on your storage: its pictures and questions come under the licences of the sources. Judge it with
`qmop evaluate --suite FOLDER`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.bounds import require_at_least
from cluster.progress import Progress
from cluster.storage import absolute, exists, join, read_bytes, write_atomic
from qmop.vtcbench.natural.build import ORIGIN, Built, build_suite
from qmop.vtcbench.natural.labels import choose, labels_digest, read_labels
from qmop.vtcbench.natural.sources import Sources
from qmop.vtcbench.suite import MANIFEST, SuiteManifest, parse_manifest


@dataclass(frozen=True, kw_only=True)
class NaturalRecipe:
    """A natural suite.

    Attributes:
        sources: your copies of the sources; labels of sources that are not given are left out and counted.
        labels: JSONL or CSV of labels, as `qmop label` writes it and you correct it.
        output: folder of the suite, local or s3://; one that holds the suite of these labels is left as it is.
        per_dimension: at most so many items of each dimension, as even over the sources as they allow; all when absent.
        seed: which ones, where there are more.
        items_per_shard: items of one unit of work.
    """

    labels: str
    output: str
    sources: Sources = field(default_factory=Sources)
    per_dimension: int | None = None
    seed: int = 0
    items_per_shard: int = 250

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a ValueError that names the field."""
        object.__setattr__(self, "output", absolute(self.output))
        require_at_least(self, 1, "per_dimension", "items_per_shard")


RECIPE = NaturalRecipe


def run(recipe: NaturalRecipe, progress: Progress) -> int:
    """Make the suite, or find it made."""
    make(recipe, progress)
    return 0


def make(recipe: NaturalRecipe, progress: Progress) -> SuiteManifest:
    """Make the suite and say what it is made of."""
    labels = read_labels(recipe.labels)
    origin = {
        "suite": "vtcbench-natural",
        "labels": labels_digest(labels.values()),
        "per_dimension": recipe.per_dimension,
        "seed": recipe.seed,
        "items_per_shard": recipe.items_per_shard,
        "sources": sorted(recipe.sources.given),
    }
    if exists(join(recipe.output, MANIFEST)):
        return _reused(recipe.output, origin, progress)
    chosen = choose(labels.values(), recipe.per_dimension, recipe.seed)
    with progress.stage(f"writing the natural suite to {recipe.output}"):
        built = build_suite(
            recipe.sources.read(),
            recipe.sources.given,
            chosen,
            lambda name, data: write_atomic(join(recipe.output, name), data),
            folder=recipe.output,
            items_per_shard=recipe.items_per_shard,
            origin=origin,
            progress=lambda done, total: progress.update("items", done, total),
        )
    _tell(built, progress)
    return built.suite


def _reused(folder: str, wanted: Mapping[str, Any], progress: Progress) -> SuiteManifest:
    """The suite that is there, if it was made from the same labels in the same way."""
    way_out = "choose another output or delete this one"
    if not exists(join(folder, ORIGIN)):
        raise ValueError(f"output {folder} holds a suite or corpus that is no natural suite: {way_out}")
    found = _origin(folder, way_out)
    for name, value in wanted.items():
        if (held := found.get(name)) != value:
            raise ValueError(f"output {folder} holds a natural suite of {name} {held}, not {value}: {way_out}")
    suite = parse_manifest(read_bytes(join(folder, MANIFEST)), folder)
    progress.say(f"{folder} holds this suite already: {suite.count} items, digest {suite.digest[:12]}")
    return suite


def _origin(folder: str, way_out: str) -> dict[str, Any]:
    """What the suite that is there was made from."""
    try:
        found = json.loads(read_bytes(join(folder, ORIGIN)))
    except ValueError as error:
        raise ValueError(f"output {folder} holds a damaged {ORIGIN} ({error}): {way_out}") from error
    if not isinstance(found, dict):
        raise ValueError(f"output {folder} holds a damaged {ORIGIN} (it is no JSON object): {way_out}")
    return found


def _tell(built: Built, progress: Progress) -> None:
    suite = built.suite
    per_source = ", ".join(f"{name} {count}" for name, count in sorted(built.taken.items()))
    per_dimension = ", ".join(f"{code} {count}" for code, count in suite.dimensions.items())
    progress.say(f"{suite.count} items, digest {suite.digest[:12]}: {per_dimension}; {per_source}")
    progress.say(
        f"rows: {built.seen} seen = {suite.count} taken + {built.other} not accepted or not chosen + "
        f"{sum(built.faults.values())} that are no samples"
    )
    for reason, count in sorted(built.faults.items()):
        progress.say(f"no sample: {count} x {reason}")
    for source, count in sorted(built.left_out.items()):
        progress.say(f"left out: {count} labelled samples of {source}, of which no copy was given")
