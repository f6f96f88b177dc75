"""The manifest: what a corpus consists of, in the wids index format with our own account beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster import storage
from cluster.storage import absolute

NAME = "manifest.json"
QUARANTINE = "quarantine.jsonl"
KIND = "wids-shard-index-v1"
LAYOUT = 2
"""Version of what a manifest says of a shard; a reader refuses any other."""
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard.

    Attributes:
        url: name relative to the manifest.
        nsamples: samples in it.
        filesize: bytes.
        sha256: of the file.
        md5sum: of the file, as the wids format asks.
        keys_sha256: of its samples' keys in order, one per line, so that a ledger can be proved without the shard.
    """

    url: str
    nsamples: int
    filesize: int
    sha256: str
    md5sum: str
    keys_sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A complete corpus. `input == written + sum(quarantined.values())` holds by construction.

    Attributes:
        folder: where the manifest and its shards lie.
        shards: in the order of the source.
        input: records that the source offered.
        written: samples that the shards hold.
        quarantined: records put aside, by reason.
        source: kind of source.
        plan: digest of recipe and source that the corpus was made from.
        digest: digest of the corpus itself.
    """

    folder: str
    shards: tuple[Shard, ...]
    input: int
    written: int
    quarantined: Mapping[str, int]
    source: str
    plan: str
    digest: str

    def __post_init__(self) -> None:
        """Refuse an account that does not add up."""
        samples = sum(shard.nsamples for shard in self.shards)
        put_aside = sum(self.quarantined.values())
        if samples != self.written or self.input != self.written + put_aside:
            raise ValueError(
                f"manifest of {self.folder}: {self.input} input, {self.written} written, {samples} in shards and "
                f"{put_aside} quarantined do not add up, prepare the corpus again"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each shard."""
        return tuple(shard.nsamples for shard in self.shards)

    def uri(self, shard: int) -> str:
        """Where a shard lies."""
        return storage.join(self.folder, self.shards[shard].url)

    def to_json(self) -> bytes:
        """The file's bytes; equal corpora give equal bytes."""
        own = {
            "version": LAYOUT,
            "digest": self.digest,
            "input": self.input,
            "written": self.written,
            "quarantined": dict(sorted(self.quarantined.items())),
            "source": self.source,
            "plan": self.plan,
        }
        document = {
            "__kind__": KIND,
            "wids_version": 1,
            "name": f"qmop-{self.source}",
            "shardlist": [asdict(shard) for shard in self.shards],
            "qmop": own,
        }
        return json.dumps(document, indent=1).encode() + b"\n"


def corpus_digest(shards: tuple[Shard, ...]) -> str:
    """SHA-256 over the shards' digests and counts, in order."""
    text = "".join(f"{shard.sha256} {shard.nsamples}\n" for shard in shards)
    return hashlib.sha256(text.encode()).hexdigest()


def keys_digest(keys: Iterable[str]) -> str:
    """SHA-256 over keys in order, one per line."""
    return hashlib.sha256("".join(f"{key}\n" for key in keys).encode()).hexdigest()


def manifest_uri(uri: str) -> str:
    """The manifest's own address, from its folder's or its own."""
    return uri if uri.endswith(".json") else storage.join(uri, NAME)


def load_manifest(uri: str) -> Manifest:
    """Read the manifest of a corpus.

    Args:
        uri: the corpus folder or the manifest file, local or remote.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged or not one of ours.
    """
    where = absolute(manifest_uri(uri))
    try:
        document = json.loads(storage.read_bytes(where))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no corpus manifest {where}, make one with `qmop prepare`") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is not valid JSON ({error}), prepare the corpus again") from error
    return _parse(document, where)


def _parse(document: Any, where: str) -> Manifest:
    if not isinstance(document, dict) or document.get("__kind__") != KIND or "qmop" not in document:
        raise ValueError(f"{where} is no manifest written by `qmop prepare`, name a corpus folder or its manifest.json")
    own = document["qmop"]
    if own.get("version") != LAYOUT:
        raise ValueError(f"{where} has layout version {own.get('version')}, this program reads {LAYOUT}: prepare again")
    try:
        shards = tuple(Shard(**entry) for entry in document["shardlist"])
        fields = {name: own[name] for name in ("input", "written", "quarantined", "source", "plan", "digest")}
        manifest = Manifest(folder=where.rpartition("/")[0], shards=shards, **fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where} lacks a field or has one too many ({error}), prepare the corpus again") from error
    if corpus_digest(shards) != manifest.digest:
        raise ValueError(f"{where} was changed: its digest does not fit its shard list, prepare the corpus again")
    return manifest


def require_all_there(manifest: Manifest) -> None:
    """A quick look: every shard is there and has its size. `verify` reads every byte.

    Raises:
        ValueError: naming the first few shards that are missing or cut, and the way out.
        StorageError: if the folder cannot be listed.
    """
    if wrong := misfits(manifest):
        raise ValueError(
            f"corpus {manifest.folder}: {len(wrong)} of {len(manifest.shards)} shards are not as the manifest says "
            f"({'; '.join(wrong[:_SHOWN])}): run the same `qmop prepare` again, which makes these alone, or copy the "
            "corpus anew"
        )


def misfits(manifest: Manifest) -> list[str]:
    """What is wrong with the shards that are missing or of another size than the manifest says.

    Raises:
        StorageError: if the folder cannot be listed.
    """
    sizes = storage.list_sizes(manifest.folder, ".tar")
    found = [(shard, sizes.get(manifest.uri(number))) for number, shard in enumerate(manifest.shards)]
    return [
        f"{shard.url} is missing" if size is None else f"{shard.url} has {size} bytes instead of {shard.filesize}"
        for shard, size in found
        if size != shard.filesize
    ]


def verify(manifest: Manifest, told: Callable[[int], None] = lambda _: None) -> None:
    """Prove that every shard is there and has the promised bytes.

    Args:
        manifest: of the corpus.
        told: hears how many shards have been read.

    Raises:
        ValueError: naming the first few shards that are missing or differ.
    """
    wrong = []
    for number in range(len(manifest.shards)):
        if text := _difference(manifest, number):
            wrong.append(text)
        told(number + 1)
    if wrong:
        shown = "; ".join(wrong[:_SHOWN])
        raise ValueError(f"corpus {manifest.folder}: {len(wrong)} shards differ from the manifest ({shown})")


def _difference(manifest: Manifest, number: int) -> str:
    shard = manifest.shards[number]
    try:
        found = storage.sha256_of(manifest.uri(number))
    except FileNotFoundError:
        return f"{shard.url} is missing"
    return "" if found == shard.sha256 else f"{shard.url} has other bytes"
