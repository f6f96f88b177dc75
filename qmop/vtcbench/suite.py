"""A suite on disk: WebDataset shards of items with a manifest whose digest every result names.

`suite-000000.tar` holds `<key>.png` and `<key>.json` per item, `manifest.json` is an index in the wids format with
our own facts under `qmop`. Shards are plain USTAR with times and owners blanked, so equal items give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from qmop.vtcbench.dimensions import FAMILIES
from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.rendered import RenderedItem, suite, suite_digest
from qmop.vtcbench.shards import pack_shard, unpack_shard
from qmop.whole_files import write_whole

MANIFEST = "manifest.json"
RENDERED, NATURAL, CORPUS = "vtcbench-rendered", "vtcbench-natural", "corpus"
"""Names of suites."""
_FORMAT = 1
_WIDS = {"__kind__": "wids-shard-index-v1", "wids_version": 1}


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard: its file name inside the suite's folder, its SHA-256, items and bytes."""

    url: str
    sha256: str
    md5: str
    count: int
    size: int


@dataclass(frozen=True, kw_only=True)
class SuiteManifest:
    """What a suite is made of; `digest` covers pictures and canonical JSON of every item, in order."""

    folder: str
    digest: str
    seed: int
    count: int
    items_per_shard: int
    dimensions: Mapping[str, int]
    """Items per dimension code, in the order of the paper's tables."""
    probe: str
    """Digest of the first few items; tells whether today's renderer still draws this suite."""
    shards: tuple[ShardInfo, ...]
    name: str = RENDERED

    def to_json(self) -> str:
        """The manifest file: a wids index, our own facts under `qmop`."""
        shards = [
            {"url": s.url, "md5sum": s.md5, "nsamples": s.count, "filesize": s.size, "sha256": s.sha256}
            for s in self.shards
        ]
        facts = {
            "format": _FORMAT,
            "digest": self.digest,
            "seed": self.seed,
            "count": self.count,
            "items_per_shard": self.items_per_shard,
            "dimensions": dict(self.dimensions),
            "probe": self.probe,
        }
        return json.dumps({**_WIDS, "name": self.name, "shardlist": shards, "qmop": facts}, indent=1) + "\n"


def parse_manifest(data: bytes | str, folder: str) -> SuiteManifest:
    """Read a manifest's text; `folder` is where its shards lie.

    Raises:
        ValueError: if the text is no manifest of a suite.
    """
    try:
        index: dict[str, Any] = json.loads(data)
        facts = index["qmop"]
        shards = tuple(
            ShardInfo(url=s["url"], sha256=s["sha256"], md5=s["md5sum"], count=s["nsamples"], size=s["filesize"])
            for s in index["shardlist"]
        )
        fields = {key: facts[key] for key in ("digest", "seed", "count", "items_per_shard", "dimensions", "probe")}
        fields["name"] = index.get("name", RENDERED)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}/{MANIFEST} is no suite manifest ({error!r}); write the suite anew") from error
    if facts.get("format") != _FORMAT:
        raise ValueError(
            f"{folder}/{MANIFEST} has format {facts.get('format')!r}, this version reads {_FORMAT}; write it anew"
        )
    manifest = SuiteManifest(folder=folder, shards=shards, **fields)
    if sum(shard.count for shard in shards) != manifest.count:
        raise ValueError(f"{folder}/{MANIFEST}: its shards do not add up to its count {manifest.count}; write it anew")
    return manifest


def load_suite(folder: str | Path) -> SuiteManifest:
    """Read the manifest of a suite in a local folder.

    Raises:
        FileNotFoundError: if the folder holds no manifest.
        ValueError: if the manifest cannot be understood.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no suite at {folder}: {MANIFEST} is missing, write one with write_suite first")
    return parse_manifest(path.read_bytes(), str(folder))


def decode_shard(data: bytes, shard: ShardInfo) -> list[RenderedItem]:
    """The items of a shard from its bytes, wherever they were read from.

    Raises:
        ValueError: if the bytes are not the ones that the manifest names.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != shard.sha256:
        raise ValueError(
            f"shard {shard.url} is damaged (SHA-256 {found[:12]}, the manifest says {shard.sha256[:12]}); write it anew"
        )
    items = unpack_shard(data, shard.url)
    if len(items) != shard.count:
        raise ValueError(f"shard {shard.url} holds {len(items)} items, the manifest says {shard.count}")
    return items


def read_shard(folder: str | Path, shard: ShardInfo) -> list[RenderedItem]:
    """The items of a shard in a local folder, checked against the manifest.

    Raises:
        FileNotFoundError: if the shard is missing.
        ValueError: if it is damaged.
    """
    path = Path(folder) / shard.url
    if not path.is_file():
        raise FileNotFoundError(f"shard {path} is missing, the manifest names it; write the suite anew")
    return decode_shard(path.read_bytes(), shard)


def write_suite(
    folder: str | Path,
    seed: int,
    count: int,
    items_per_shard: int,
    progress: Callable[[int, int], None] | None = None,
) -> SuiteManifest:
    """Render a suite into a folder; a complete one is left as it is, a half-written one is drawn again.

    Args:
        folder: local folder, made if absent.
        seed: the suite's seed, not negative.
        count: items in all.
        items_per_shard: items in every shard but the last.
        progress: called with (items done, items in all) after every shard.

    Raises:
        ValueError: if a number is out of range, or the folder holds another complete suite.
    """
    _check(seed, count, items_per_shard)
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    wanted = {"seed": seed, "count": count, "items_per_shard": items_per_shard, "probe": probe_digest(seed)}
    if (home / MANIFEST).is_file():
        return _reuse(load_suite(home), wanted)
    manifest = _write_shards(home, wanted, progress)
    write_whole(home / MANIFEST, manifest.to_json().encode())
    return manifest


def probe_digest(seed: int) -> str:
    """Digest of the first four items of every family: changes whenever the renderer does."""
    return suite_digest(suite(seed, 4 * len(FAMILIES)))


def _check(seed: int, count: int, items_per_shard: int) -> None:
    for name, value, least in (("seed", seed, 0), ("count", count, 1), ("items_per_shard", items_per_shard, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}, a suite needs at least {least}")


def _reuse(found: SuiteManifest, wanted: Mapping[str, Any]) -> SuiteManifest:
    """A complete suite as it is, if it is the wanted one."""
    way_out = "choose another folder or delete this one"
    for name, value in wanted.items():
        if (have := getattr(found, name)) != value:
            raise ValueError(f"{found.folder} holds a complete suite of {name} {have}, not {value}; {way_out}")
    for shard in found.shards:
        path = Path(found.folder) / shard.url
        if not path.is_file() or path.stat().st_size != shard.size:
            raise ValueError(f"{path} is missing or cut short though the manifest names it; {way_out}")
    return found


def _write_shards(home: Path, wanted: Mapping[str, Any], progress: Callable[[int, int], None] | None) -> SuiteManifest:
    """Draw every shard; what an interrupted run left behind is written over with the same bytes."""
    shards: list[ShardInfo] = []
    dimensions: Counter[str] = Counter()

    def drawn() -> Iterator[RenderedItem]:
        source, done = suite(wanted["seed"], wanted["count"]), 0
        while items := list(islice(source, wanted["items_per_shard"])):
            info, data = packed(len(shards), items)
            write_whole(home / info.url, data)
            shards.append(info)
            dimensions.update(rendered.item.dimension for rendered in items)
            done += len(items)
            if progress is not None:
                progress(done, wanted["count"])
            yield from items

    digest = suite_digest(drawn())
    ordered = {code: dimensions[code] for code in DIMENSIONS if dimensions[code]}
    return SuiteManifest(folder=str(home), digest=digest, dimensions=ordered, shards=tuple(shards), **wanted)


def packed(number: int, items: list[RenderedItem]) -> tuple[ShardInfo, bytes]:
    """A shard's bytes, and what the manifest says of them."""
    data = pack_shard(items)
    info = ShardInfo(
        url=f"suite-{number:06d}.tar",
        sha256=hashlib.sha256(data).hexdigest(),
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        count=len(items),
        size=len(data),
    )
    return info, data
