"""Proof of an epoch out of ledger and manifests: nothing missing, nothing twice, everything in its order."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cluster import storage
from pipelines.corpus.blend import Blend
from pipelines.corpus.feed import CorpusFeed
from pipelines.corpus.ledger import FEED, Entry, stretches
from pipelines.corpus.manifest import keys_digest
from pipelines.corpus.quality import ShuffleQuality, shuffle_quality

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What a ledger proves.

    Attributes:
        steps: optimiser steps that counted, from the first of the run on without a gap.
        samples: samples in them; each at the position that the order gives it.
        epochs: whole epochs of the corpora among them.
        proved_shards: shards whose every key was seen in an epoch and fits the manifest.
        attempts: starts of the worker group.
        repeated: steps that a later attempt took again; they count once.
        worlds: numbers of workers that took part.
        shuffles: how well the order shuffles each corpus.
    """

    steps: int
    samples: int
    epochs: float
    proved_shards: int
    attempts: int
    repeated: int
    worlds: tuple[int, ...]
    shuffles: tuple[ShuffleQuality, ...]


def audit(folder: str) -> Audit:
    """Prove a ledger against the manifests of its corpora.

    Raises:
        FileNotFoundError: if there is no ledger or a corpus is gone.
        ValueError: naming the first step, position or key that is missing, doubled or out of order, or the corpus
            that has changed since.
    """
    feed = _feed(folder)
    blend = feed.blend()
    steps, attempts, repeated, worlds = steps_that_counted(folder)
    keys = _keys_in_order(steps, feed)
    return Audit(
        steps=len(steps),
        samples=len(keys),
        epochs=len(keys) / blend.epoch,
        proved_shards=_prove(keys, blend),
        attempts=attempts,
        repeated=repeated,
        worlds=worlds,
        shuffles=tuple(shuffle_quality(order) for order in blend.orders),
    )


def _feed(folder: str) -> CorpusFeed:
    place = storage.join(folder, FEED)
    if not storage.exists(place):
        raise FileNotFoundError(f"there is no ledger in {folder}: name the `ledger` folder of a run")
    said = json.loads(storage.read_bytes(place))
    digests = said.pop("digests")
    feed = CorpusFeed(**said)
    for manifest, digest in zip(feed.blend().manifests, digests, strict=True):
        if manifest.digest != digest:
            raise ValueError(
                f"corpus {manifest.folder} has digest {manifest.digest[:12]}, but the run read {digest[:12]}: "
                "audit against the corpus as it was"
            )
    return feed


def steps_that_counted(folder: str) -> tuple[dict[int, list[Entry]], int, int, tuple[int, ...]]:
    """The entries of each step that counted; earlier attempts end where the next one began."""
    by_attempt: dict[int, dict[int, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    starts: dict[int, int] = {}
    worlds: dict[int, set[int]] = defaultdict(set)
    for stretch in stretches(folder):
        starts[stretch.attempt] = stretch.start
        worlds[stretch.attempt].add(stretch.world)
        for entry in stretch.entries:
            by_attempt[stretch.attempt][entry.step].append(entry)
    counted: dict[int, list[Entry]] = {}
    repeated = 0
    for attempt in sorted(by_attempt):
        later = [step for step in counted if step >= starts[attempt]]
        repeated += len(later)
        for step in later:
            del counted[step]
        counted |= by_attempt[attempt]
    if not counted:
        raise ValueError(f"ledger {folder} holds no step: nothing was trained, or nothing was flushed")
    order = dict(sorted(counted.items()))
    gaps = [(one, other) for one, other in pairwise(order) if other != one + 1]
    if gaps or next(iter(order)) != 0:
        first = gaps[0][0] + 1 if gaps else 0
        raise ValueError(f"ledger {folder}: step {first} is missing, so its samples are unaccounted for")
    return order, len(by_attempt), repeated, tuple(sorted({world for those in worlds.values() for world in those}))


def _keys_in_order(steps: dict[int, list[Entry]], feed: CorpusFeed) -> list[str]:
    """Every key by its position, all positions proved."""
    keys: list[str] = []
    for step, entries in steps.items():
        rows = sorted(
            (position, key) for entry in entries for position, key in zip(entry.positions, entry.keys, strict=True)
        )
        found, due = [position for position, _ in rows], list(range(step * feed.step, (step + 1) * feed.step))
        if found != due:
            missing, extra = sorted(set(due) - set(found)), [one for one, next_ in pairwise(found) if one == next_]
            extra += sorted(set(found) - set(due))
            raise ValueError(
                f"step {step}: positions {missing[:_SHOWN]} are missing and {extra[:_SHOWN]} are there twice or "
                "belong elsewhere"
            )
        keys += [key for _, key in rows]
    return keys


def _prove(keys: list[str], blend: Blend) -> int:
    """Hold the keys against the manifests; a shard that was read to its end is proved by its keys' digest."""
    places = blend.places(0, len(keys))
    names = np.array(keys)
    proved = 0
    for corpus, order in enumerate(blend.orders):
        mine = places.corpus == corpus
        shards, indices, own = places.shard[mine], places.index[mine], names[mine]
        for start in range(0, len(own), order.epoch_samples):
            epoch = slice(start, start + order.epoch_samples)
            proved += _prove_epoch(blend, corpus, shards[epoch], indices[epoch], own[epoch])
    return proved


def _prove_epoch(blend: Blend, corpus: int, shards: np.ndarray, indices: np.ndarray, keys: np.ndarray) -> int:
    manifest = blend.manifests[corpus]
    proved = 0
    ranked = np.lexsort((indices, shards))
    edges = np.flatnonzero(np.diff(shards[ranked])) + 1
    for places in np.split(ranked, edges):
        if not len(places):
            continue
        shard = manifest.shards[int(shards[places[0]])]
        if len(set(keys[places].tolist())) != len(places):
            raise ValueError(f"a key of {shard.url} came twice in one epoch")
        if len(places) == shard.nsamples:
            if keys_digest(keys[places].tolist()) != shard.keys_sha256:
                raise ValueError(f"the keys seen of {shard.url} are not those of the manifest, or in another order")
            proved += 1
    return proved
