"""The pictures that a report needs, out of the suite that was judged; nothing is read where none is needed."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cluster.storage import exists, join, read_bytes
from qmop.vtcbench.records import Record
from qmop.vtcbench.suite import MANIFEST, SuiteManifest, decode_shard, parse_manifest

_WAY_OUT = "name its folder by --suite, or write the report without pictures: --samples 0 --inspect false"


def pictures_of(keys: Collection[str], records: Iterable[Record], folder: str, *, given: bool) -> dict[str, bytes]:
    """Encoded pictures by item key; of the suite's shards those alone are read that hold one of the items.

    Args:
        keys: of the items.
        records: that speak of them, which name suite and shards.
        folder: of the suite, local or s3://.
        given: whether the recipe names the folder; otherwise it is where the suite lay at the evaluation.

    Raises:
        FileNotFoundError: if the suite or one of the shards is not there.
        ValueError: if another suite is there, or a file of it is damaged.
    """
    asked = [record for record in records if record.key in keys]
    if not asked:
        return {}
    manifest = _manifest(folder, asked[0].suite_digest, given=given)
    wanted = {record.shard for record in asked}
    found: dict[str, bytes] = {}
    for shard in manifest.shards:
        if shard.url in wanted:
            place = join(folder, shard.url)
            if not exists(place):
                raise FileNotFoundError(f"{_named(folder, given=given)}, but its {shard.url} is gone: {_WAY_OUT}")
            items = decode_shard(read_bytes(place), shard)
            found |= {rendered.item.key: rendered.image for rendered in items if rendered.item.key in keys}
    return found


def _manifest(folder: str, digest: str, *, given: bool) -> SuiteManifest:
    place = join(folder, MANIFEST)
    if not exists(place):
        raise FileNotFoundError(f"{_named(folder, given=given)}, but there is no {MANIFEST} now: {_WAY_OUT}")
    manifest = parse_manifest(read_bytes(place), folder)
    if manifest.digest != digest:
        raise ValueError(
            f"{_named(folder, given=given)}, but a suite of digest {manifest.digest[:12]} is there and the results are "
            f"of {digest[:12]}: {_WAY_OUT}"
        )
    return manifest


def _named(folder: str, *, given: bool) -> str:
    return f"suite is {folder!r}" if given else f"the suite lay at {folder!r} when the results were made"
