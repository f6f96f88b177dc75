"""What was put aside, kept so that people can look into it: accounts and the raw bytes, never opened."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable

from pipelines.corpus.samples import Fault
from pipelines.corpus.shards import plain_header

FOLDER = "_quarantine"
"""Ray Data passes over folders with an underscore, so whoever reads the whole corpus folder does not read this."""
MOST_BYTES = 256_000_000
"""Raw bytes that one quarantine shard holds at most; what comes after them keeps its account alone."""
_UNSAFE = re.compile(r"[^a-z0-9]+")
_LONGEST_NAME = 20


def shard_name(index: int) -> str:
    """Where a unit's quarantine shard lies, below the corpus folder."""
    return f"{FOLDER}/quarantine-{index:06d}.tar"


def encode_faults(faults: Iterable[Fault], max_bytes: int, most_bytes: int = MOST_BYTES) -> bytes:
    """A tar with `<position>.json` per fault, the line of the account, and `<position>.<what>.bin` beside it.

    Args:
        faults: with their positions.
        max_bytes: the largest piece of evidence that is kept.
        most_bytes: the most that all evidence may take.
    """
    buffer, left = io.BytesIO(), most_bytes
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for fault in faults:
            _add(tar, f"{fault.position:09d}.json", fault.to_json().encode())
            for name, data in _named(fault):
                if len(data) <= min(max_bytes, left):
                    _add(tar, name, data)
                    left -= len(data)
    return buffer.getvalue()


def _named(fault: Fault) -> list[tuple[str, bytes]]:
    """Evidence under names that no tool opens by itself; what they are called comes from hostile places."""
    names: dict[str, bytes] = {}
    for what, data in fault.evidence.items():
        safe = _UNSAFE.sub("_", what.lower()).strip("_")[:_LONGEST_NAME] or "member"
        name = safe if safe not in names else f"{safe}_{len(names)}"
        names[name] = data
    return [(f"{fault.position:09d}.{name}.bin", data) for name, data in names.items()]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    tar.addfile(plain_header(name, len(data)), io.BytesIO(data))
