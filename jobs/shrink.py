"""Copy a suite with its pictures down-sampled as far as a compressor compresses: the other half of the hard subset.

Judge the uncompressed model on both suites, every other on the full one, then `qmop report hard`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from cluster.bounds import require_above, require_at_least
from cluster.progress import Progress
from cluster.storage import absolute, exists, join, read_bytes, write_atomic
from qmop.vtcbench.shrinking import factor_of, shrink_suite
from qmop.vtcbench.suite import MANIFEST, decode_shard, parse_manifest


@dataclass(frozen=True, kw_only=True)
class ShrinkRecipe:
    """A down-sampled suite; give tokens or factor.

    Attributes:
        suite: folder of a suite, rendered or natural.
        output: folder of the new one.
        tokens: visual tokens of the compressor that it is to be held against.
        patches: visual tokens without compression.
        factor: by how much each side shrinks; the root of patches / tokens when absent.
    """

    suite: str
    output: str
    tokens: int | None = None
    patches: int = 144
    factor: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a ValueError that names the field."""
        object.__setattr__(self, "suite", absolute(self.suite))
        object.__setattr__(self, "output", absolute(self.output))
        if (self.tokens is None) == (self.factor is None):
            raise ValueError("give either tokens or factor, which says by how much the pictures shrink")
        require_above(self, 1, "factor")
        require_at_least(self, 1, "patches", "tokens")
        if self.suite == self.output:
            raise ValueError(f"output is the suite itself, {self.suite}: name another folder")


RECIPE = ShrinkRecipe


def run(recipe: ShrinkRecipe, progress: Progress) -> int:
    """Write the down-sampled copy."""
    factor = recipe.factor or factor_of(recipe.patches, recipe.tokens or 0)
    if not exists(join(recipe.suite, MANIFEST)):
        raise FileNotFoundError(f"suite {recipe.suite} holds no {MANIFEST}: name the folder of a suite")
    if exists(join(recipe.output, MANIFEST)):
        raise ValueError(f"output {recipe.output} holds a suite already: choose another folder or delete this one")
    suite = parse_manifest(read_bytes(join(recipe.suite, MANIFEST)), recipe.suite)
    with progress.stage(f"down-sampling {suite.count} pictures by {factor:g}"):
        shards = (decode_shard(read_bytes(join(recipe.suite, shard.url)), shard) for shard in suite.shards)
        small = shrink_suite(suite, shards, factor, partial(_write, recipe.output), folder=recipe.output)
    progress.say(f"{small.count} items, digest {small.digest[:12]}: judge them with --suite {recipe.output}")
    return 0


def _write(folder: str, name: str, data: bytes) -> None:
    write_atomic(join(folder, name), data)
