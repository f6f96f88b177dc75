"""From copies of the sources and labels to a suite: the same shards, manifest and digest as the rendered one's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.natural.labels import Name
from qmop.vtcbench.natural.samples import Fault, Sample
from qmop.vtcbench.rendered import RenderedItem, suite_digest
from qmop.vtcbench.suite import MANIFEST, NATURAL, ShardInfo, SuiteManifest, packed

ORIGIN = "natural.json"
"""Beside the manifest: what the suite was made from."""
_NAMED = 5
"""Samples that an error names."""

Write = Callable[[str, bytes], None]


@dataclass(frozen=True, kw_only=True)
class Built:
    """A suite and the counts of what it was made from; `seen == taken + other + sum(faults.values())`.

    Attributes:
        suite: its manifest.
        taken: items by source.
        other: samples of the copies that were not to be taken.
        faults: rows that are no samples, by source and reason.
        left_out: samples that were to be taken, of sources that no copy was given of.
    """

    suite: SuiteManifest
    taken: Mapping[str, int]
    other: int
    faults: Mapping[str, int]
    left_out: Mapping[str, int]

    @property
    def seen(self) -> int:
        """Rows of all copies."""
        return sum(self.taken.values()) + self.other + sum(self.faults.values())


def build_suite(
    found: Iterable[Sample | Fault],
    given: Iterable[str],
    chosen: Mapping[Name, str],
    write: Write,
    *,
    folder: str,
    items_per_shard: int = 250,
    origin: Mapping[str, object] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Built:
    """Write a suite: shard by shard, then what it was made from, its manifest last.

    Args:
        found: what the sources' readers yield.
        given: the sources that there are copies of.
        chosen: samples to take, with their dimensions.
        write: puts bytes under a name, in one act.
        folder: what the manifest calls the suite's place.
        items_per_shard: items in every shard but the last.
        origin: facts to keep beside the manifest.
        progress: called with (items done, items in all) after every shard.

    Raises:
        ValueError: if nothing is to be taken, or a sample that is to be taken is missing, is none, or has no picture.
    """
    sources = set(given)
    wanted = {name: code for name, code in chosen.items() if name[0] in sources}
    if not wanted:
        raise ValueError("the labels accept no sample of the sources that were given: give other copies or labels")
    picker = _Picker(found, wanted)
    shards: list[ShardInfo] = []

    def items() -> Iterator[RenderedItem]:
        for part in _parts(picker, items_per_shard):
            info, data = packed(len(shards), part)
            write(info.url, data)
            shards.append(info)
            if progress is not None:
                progress(sum(shard.count for shard in shards), len(wanted))
            yield from part

    digest = suite_digest(items())
    picker.check_all_found()
    suite = SuiteManifest(
        folder=folder,
        digest=digest,
        seed=0,
        count=sum(shard.count for shard in shards),
        items_per_shard=items_per_shard,
        dimensions={code: picker.dimensions[code] for code in DIMENSIONS if picker.dimensions[code]},
        probe="",
        shards=tuple(shards),
        name=NATURAL,
    )
    left_out = Counter(source for source, _ in chosen if source not in sources)
    facts = {**(origin or {}), "items": dict(sorted(picker.taken.items())), "left_out": dict(sorted(left_out.items()))}
    write(ORIGIN, (json.dumps(facts, indent=1) + "\n").encode())
    write(MANIFEST, suite.to_json().encode())
    return Built(suite=suite, taken=picker.taken, other=picker.other, faults=picker.faults, left_out=left_out)


class _Picker:
    """Picks the wanted samples out of all, and counts the rest."""

    def __init__(self, found: Iterable[Sample | Fault], wanted: Mapping[Name, str]) -> None:
        self._found, self._wanted = found, wanted
        self._missing = dict.fromkeys(wanted)
        self.taken: Counter[str] = Counter()
        self.dimensions: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.other = 0

    def __iter__(self) -> Iterator[RenderedItem]:
        for one in self._found:
            code = self._wanted.get((one.source, one.id))
            if isinstance(one, Fault):
                if code is not None:
                    raise ValueError(f"{one.detail}; it is labelled {code}: repair the copy or reject it in the labels")
                self.faults[f"{one.source}: {one.reason}"] += 1
            elif code is None:
                self.other += 1
            else:
                self._missing.pop((one.source, one.id))
                self.taken[one.source] += 1
                self.dimensions[code] += 1
                yield RenderedItem(item=one.item(code), image=_picture(one, code))

    def check_all_found(self) -> None:
        """Refuse labels of samples that no copy has."""
        if self._missing:
            names = ", ".join(f"{source} {one}" for source, one in list(self._missing)[:_NAMED])
            more = f" and {len(self._missing) - _NAMED} more" if len(self._missing) > _NAMED else ""
            raise ValueError(
                f"labels name samples that the copies do not have: {names}{more}; give the split and format that was "
                "labelled, or remove these lines"
            )


def _picture(sample: Sample, code: str) -> bytes:
    try:
        return sample.picture()
    except ValueError as error:
        raise ValueError(f"{error}; it is labelled {code}: repair the copy or reject it in the labels") from error


def _parts(items: Iterable[RenderedItem], size: int) -> Iterator[list[RenderedItem]]:
    part: list[RenderedItem] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
