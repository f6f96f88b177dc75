"""A prepared corpus as a suite: the first question of every sample with one picture, judged by its own answer.

An item of a suite has one picture, so samples with several are left out and counted. Such items carry no VTCBench
dimension, so they count in the micro average alone.
"""

from __future__ import annotations

import json
from pathlib import Path

from cluster.progress import Progress
from cluster.storage import exists, join, read_bytes, write_atomic
from pipelines.corpus.manifest import load_manifest
from pipelines.corpus.reader import Stored, read_shard
from qmop.vtcbench.items import UNLABELLED, Item
from qmop.vtcbench.rendered import RenderedItem, suite_digest
from qmop.vtcbench.suite import CORPUS, MANIFEST, ShardInfo, SuiteManifest, packed, parse_manifest

_SHORT = 3
"""Up to this many words an answer is compared exactly, longer ones by shared words."""


def corpus_suite(folder: str, store: str, progress: Progress) -> SuiteManifest | None:
    """The suite made of a corpus, kept in the results store; None if the folder holds a suite already.

    Raises:
        ValueError: if no sample of the corpus has exactly one picture and an answer, or its manifest cannot be read.
    """
    try:
        facts = json.loads(read_bytes(join(folder, MANIFEST)))["qmop"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"suite {folder} has a {MANIFEST} that cannot be read ({error!r}): make it anew") from error
    if "dimensions" in facts:
        return None
    manifest = load_manifest(folder)
    home = join(store, f"asked-{manifest.digest[:12]}")
    if exists(join(home, MANIFEST)):
        return parse_manifest(read_bytes(join(home, MANIFEST)), home)
    shards: list[ShardInfo] = []
    items: list[RenderedItem] = []
    several = 0
    with progress.stage(f"turning corpus {folder} into questions"):
        for number, shard in enumerate(manifest.shards):
            stored = list(read_shard(manifest.uri(number), shard))
            several += sum(len(sample.images) > 1 for sample in stored)
            part = [item for sample in stored if (item := _asked(sample, manifest.source)) is not None]
            if part:
                info, data = packed(len(shards), part)
                write_atomic(join(home, info.url), data)
                shards.append(info)
                items += part
            progress.update("shards", number + 1, len(manifest.shards))
    if not items:
        raise ValueError(
            f"suite {folder} is a corpus without a single picture and answer, {several} of {manifest.written} samples "
            "have several pictures: give one with samples of one picture"
        )
    progress.say(f"{len(items)} of {manifest.written} samples have one picture and a question; {several} have several")
    suite = SuiteManifest(
        folder=home,
        digest=suite_digest(items),
        seed=0,
        count=len(items),
        items_per_shard=max(shard.count for shard in shards),
        dimensions={},
        probe="",
        shards=tuple(shards),
        name=CORPUS,
    )
    write_atomic(join(home, MANIFEST), suite.to_json().encode())
    return suite


def _asked(sample: Stored, source: str) -> RenderedItem | None:
    if len(sample.images) != 1:
        return None
    messages = json.loads(sample.record)["messages"]
    question, answer = messages[0]["text"], messages[1]["text"]
    scorer = "exact_match" if len(answer.split()) <= _SHORT else "token_f1"
    item = Item(
        key=sample.key,
        question=question,
        answers=(answer,),
        dimension=UNLABELLED,
        task=Path(source).name,
        source=source,
        scorer=scorer,
    )
    return RenderedItem(item=item, image=sample.images[0])
