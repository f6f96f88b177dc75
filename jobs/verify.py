"""Prove a prepared corpus against its manifest: every shard there, every byte as promised."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.progress import Progress
from pipelines.corpus.manifest import load_manifest, verify


@dataclass(frozen=True, kw_only=True)
class VerifyRecipe:
    """What to prove.

    Attributes:
        corpus: folder of a prepared corpus, or its manifest.json; local or s3://.
    """

    corpus: str


RECIPE = VerifyRecipe


def run(recipe: VerifyRecipe, progress: Progress) -> int:
    """Read every shard once; a mistake is a sentence and exit code 2."""
    manifest = load_manifest(recipe.corpus)
    with progress.stage(f"Reading {len(manifest.shards)} shards of {manifest.folder}"):
        verify(manifest, lambda done: progress.update("Shards", done, len(manifest.shards), ""))
    progress.say(
        f"Corpus {manifest.folder} is as its manifest says: {manifest.written} samples, digest {manifest.digest[:12]}"
    )
    return 0
