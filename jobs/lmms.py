"""Write a suite as tasks of lmms-eval, with which it judges any model of its own.

Then: lmms-eval --model MODEL --model_args ... --tasks vtcbench --include_path FOLDER
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.bounds import require_at_least
from cluster.progress import Progress
from cluster.storage import absolute, exists, is_s3, join, read_bytes, write_atomic
from qmop.vtcbench.harness_task import write_task
from qmop.vtcbench.items import STANDARD_ITEMS
from qmop.vtcbench.lmms_eval import GROUP
from qmop.vtcbench.rendered import RenderedItem, suite, suite_digest
from qmop.vtcbench.suite import MANIFEST, SuiteManifest, decode_shard, parse_manifest


@dataclass(frozen=True, kw_only=True)
class LmmsRecipe:
    """Tasks of lmms-eval.

    Attributes:
        output: folder of the tasks, on local disk; files of an earlier suite there are written over.
        suite: folder of a suite, rendered or natural; one is rendered when absent.
        count: items of the one that is rendered.
        seed: of the one that is rendered; the default is that of `qmop evaluate`.
        max_new_tokens: longest answer.
    """

    output: str
    suite: str | None = None
    count: int = STANDARD_ITEMS
    seed: int = 1
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a ValueError that names the field."""
        object.__setattr__(self, "output", absolute(self.output))
        if self.suite is not None:
            object.__setattr__(self, "suite", absolute(self.suite))
        if is_s3(self.output):
            raise ValueError(f"output is {self.output}, but lmms-eval reads local files: name a local folder")
        require_at_least(self, 1, "count", "max_new_tokens")
        require_at_least(self, 0, "seed")


RECIPE = LmmsRecipe


def run(recipe: LmmsRecipe, progress: Progress) -> int:
    """Write the folder and say how it is used."""
    items, digest = _items(recipe, progress)
    with progress.stage(f"writing tasks to {recipe.output}"):
        tasks = write_task(
            items,
            digest,
            lambda name, data: write_atomic(join(recipe.output, name), data),
            max_new_tokens=recipe.max_new_tokens,
        )
    counts = ", ".join(f"{task} {count}" for task, count in tasks.items())
    progress.say(f"suite {digest[:12]}, {sum(tasks.values())} items: {counts}")
    progress.say(f"lmms-eval --model MODEL --model_args ... --tasks {GROUP} --include_path {recipe.output}")
    return 0


def _items(recipe: LmmsRecipe, progress: Progress) -> tuple[Iterator[RenderedItem], str]:
    """The items of the suite and its digest."""
    if recipe.suite is None:
        with progress.stage(f"rendering {recipe.count} items"):
            drawn = list(suite(recipe.seed, recipe.count))
        return iter(drawn), suite_digest(drawn)
    if not exists(join(recipe.suite, MANIFEST)):
        raise FileNotFoundError(f"suite {recipe.suite} holds no {MANIFEST}: name the folder of a suite")
    manifest = parse_manifest(read_bytes(join(recipe.suite, MANIFEST)), recipe.suite)
    return _read(manifest), manifest.digest


def _read(manifest: SuiteManifest) -> Iterator[RenderedItem]:
    for shard in manifest.shards:
        yield from decode_shard(read_bytes(join(manifest.folder, shard.url)), shard)
