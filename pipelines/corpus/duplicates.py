"""Repetitions, found over the whole source: fingerprints are taken part by part, one pass over them decides.

What counts is the order of the source, so neither the number of workers nor an interruption changes the answer.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise

import imagehash
import numpy as np

from pipelines.corpus.images import decode_image
from pipelines.corpus.recipe import Duplicates
from pipelines.corpus.samples import Sample

BITS = 64
_DIGITS = BITS // 4

Verdict = tuple[str, str]
"""Reason and detail."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """One good sample: SHA-256 of images and texts, and the perceptual hashes of its pictures as hexadecimal.

    `near` is 16 digits for each picture, in order; None without any.
    """

    position: int
    exact: str
    near: str | None


def fingerprint(position: int, sample: Sample, wanted: Duplicates) -> Fingerprint:
    """What is needed to tell a sample from all others."""
    images = sample.images or (b"",)
    digest = hashlib.sha256(b"".join(hashlib.sha256(image).digest() for image in images))
    digest.update(json.dumps(sample.record["messages"], sort_keys=True).encode())
    near = None
    if wanted.near_distance is not None and sample.images:
        near = "".join(str(imagehash.phash(decode_image(image))) for image in sample.images)
    return Fingerprint(position=position, exact=digest.hexdigest(), near=near)


def to_json(plan: str, prints: list[Fingerprint]) -> bytes:
    """The file that keeps a part's fingerprints."""
    return json.dumps({"plan": plan, "prints": [asdict(one) for one in prints]}).encode()


def from_json(data: bytes, plan: str) -> list[Fingerprint] | None:
    """Fingerprints back, or None where they belong to another plan or are damaged."""
    try:
        document = json.loads(data)
        return [Fingerprint(**one) for one in document["prints"]] if document["plan"] == plan else None
    except (ValueError, KeyError, TypeError):
        return None


def verdicts(parts: Iterable[list[Fingerprint]], wanted: Duplicates) -> list[dict[int, Verdict]]:
    """For each part the positions to put aside. What was put aside hides nothing: only samples that stay are compared.

    Args:
        parts: fingerprints in the order of the source.
        wanted: what counts as a repetition.
    """
    exact: dict[bytes, int] = {}
    near = None if wanted.near_distance is None else _Pictures(wanted.near_distance)
    found = []
    for prints in parts:
        aside: dict[int, Verdict] = {}
        for one in prints:
            if verdict := _verdict(one, exact if wanted.exact else None, near):
                aside[one.position] = verdict
        found.append(aside)
    return found


def _verdict(one: Fingerprint, exact: dict[bytes, int] | None, near: _Pictures | None) -> Verdict | None:
    key = bytes.fromhex(one.exact)
    if exact is not None and key in exact:
        return "duplicate", f"record {exact[key]} has the same images and texts"
    if near is not None and one.near is not None:
        codes = [int(one.near[start : start + _DIGITS], 16) for start in range(0, len(one.near), _DIGITS)]
        if (known := near.like(codes)) is not None:
            what = "a picture that differs" if len(codes) == 1 else "pictures that differ"
            return "near_duplicate", f"record {known[0]} has {what} in {known[1]} of {BITS} bits"
        near.add(codes, one.position)
    if exact is not None:
        exact[key] = one.position
    return None


class _Pictures:
    """Pictures of samples, kept apart by how many a sample has."""

    def __init__(self, distance: int) -> None:
        self._distance = distance
        self._by_number: dict[int, _Codes] = {}

    def add(self, codes: list[int], position: int) -> None:
        """Keep a sample's pictures."""
        if len(codes) not in self._by_number:
            self._by_number[len(codes)] = _Codes(len(codes), self._distance)
        self._by_number[len(codes)].add(codes, position)

    def like(self, codes: list[int]) -> tuple[int, int] | None:
        """Position of the first kept sample whose pictures, in order, are all near enough; and how far the worst is."""
        kept = self._by_number.get(len(codes))
        return None if kept is None else kept.like(codes)


class _Codes:
    """Hashes by bands: codes that differ in at most `distance` bits agree in one of `distance + 1` bands.

    Of several pictures the first is looked up; the others are compared where it fits.
    """

    def __init__(self, number: int, distance: int) -> None:
        self._number, self._distance = number, distance
        edges = np.linspace(0, BITS, distance + 2).astype(int)
        self._bands = [(int(low), (1 << int(high - low)) - 1) for low, high in pairwise(edges)]
        self._places: list[dict[int, array[int]]] = [{} for _ in self._bands]
        self._codes, self._positions = array("Q"), array("Q")

    def add(self, codes: list[int], position: int) -> None:
        """Keep a sample's pictures."""
        place = len(self._positions)
        self._codes.extend(codes)
        self._positions.append(position)
        for (shift, mask), places in zip(self._bands, self._places, strict=True):
            places.setdefault(codes[0] >> shift & mask, array("Q")).append(place)

    def like(self, codes: list[int]) -> tuple[int, int] | None:
        """See `_Pictures.like`."""
        kept = np.frombuffer(self._codes, np.uint64).reshape(-1, self._number)
        wanted = np.array(codes, np.uint64)
        first: tuple[int, int] | None = None
        for (shift, mask), places in zip(self._bands, self._places, strict=True):
            if (there := places.get(codes[0] >> shift & mask)) is None:
                continue
            candidates = np.frombuffer(there, np.uint64)
            distances = np.bitwise_count(kept[candidates] ^ wanted).max(axis=1)
            hits = np.flatnonzero(distances <= self._distance)
            if len(hits) and (first is None or int(candidates[hits[0]]) < first[0]):
                first = int(candidates[hits[0]]), int(distances[hits[0]])
        return None if first is None else (self._positions[first[0]], first[1])
