"""The suite that an evaluation asks: a suite's folder, a prepared corpus, or the rendered one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.progress import Progress
from cluster.storage import exists, is_s3, join, put_file, read_bytes
from pipelines.evaluation.asked_corpus import corpus_suite
from pipelines.evaluation.recipe import EvaluateRecipe, SuiteRecipe
from qmop.vtcbench.suite import MANIFEST, SuiteManifest, parse_manifest, write_suite


def prepare_suite(recipe: EvaluateRecipe, progress: Progress) -> SuiteManifest:
    """The suite that a recipe names, drawn if need be.

    Raises:
        FileNotFoundError: if there is none in the folder that it names.
        ValueError: if the folder holds something else.
    """
    if recipe.suite is None:
        return _rendered_suite(recipe.rendered, recipe.output, progress)
    if not exists(join(recipe.suite, MANIFEST)):
        raise FileNotFoundError(
            f"suite {recipe.suite} holds no {MANIFEST}: give a suite, or a corpus made by `qmop prepare`"
        )
    corpus = corpus_suite(recipe.suite, recipe.output, progress)
    return corpus or parse_manifest(read_bytes(join(recipe.suite, MANIFEST)), recipe.suite)


def _rendered_suite(wanted: SuiteRecipe, store: str, progress: Progress) -> SuiteManifest:
    """Draw the suite into the store; for a remote one, draw it here and copy it, its manifest last."""
    folder = join(store, f"suite-{wanted.seed}-{wanted.count}-{wanted.items_per_shard}")
    if is_s3(store) and exists(join(folder, MANIFEST)):
        return parse_manifest(read_bytes(join(folder, MANIFEST)), folder)
    with progress.stage(f"rendering suite {folder}"), TemporaryDirectory() as scratch:
        home = scratch if is_s3(store) else folder
        suite = write_suite(
            home,
            wanted.seed,
            wanted.count,
            wanted.items_per_shard,
            lambda done, total: progress.update("suite items", done, total),
        )
        if is_s3(store):
            for name in (*(shard.url for shard in suite.shards), MANIFEST):
                put_file(Path(home, name), join(folder, name))
        return replace(suite, folder=folder)
