"""The manifest: what it promises, and how it notices that a promise is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.corpus.manifest import (
    Manifest,
    Shard,
    corpus_digest,
    load_manifest,
    require_all_there,
    verify,
)

SHARDS = (
    Shard(url="corpus-000000.tar", nsamples=3, filesize=10, sha256="a" * 64, md5sum="b" * 32, keys_sha256="e" * 64),
    Shard(url="corpus-000001.tar", nsamples=2, filesize=9, sha256="c" * 64, md5sum="d" * 32, keys_sha256="f" * 64),
)
FIELDS: dict[str, Any] = {
    "folder": "x",
    "shards": SHARDS,
    "input": 7,
    "written": 5,
    "quarantined": {"no_caption": 2},
    "source": "llava",
    "plan": "p",
    "digest": corpus_digest(SHARDS),
}


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    manifest = Manifest(**(FIELDS | {"folder": str(tmp_path)}))
    (tmp_path / "manifest.json").write_bytes(manifest.to_json())
    assert load_manifest(str(tmp_path)) == manifest
    assert load_manifest(str(tmp_path / "manifest.json")) == manifest
    assert manifest.uri(1) == f"{tmp_path}/corpus-000001.tar"


def test_the_file_is_a_wids_index() -> None:
    document = json.loads(Manifest(**FIELDS).to_json())
    assert (document["__kind__"], document["wids_version"]) == ("wids-shard-index-v1", 1)
    assert {"url", "md5sum", "nsamples", "filesize"} <= set(document["shardlist"][0])


@pytest.mark.parametrize("changes", [{"input": 8}, {"written": 4}, {"quarantined": {}}])
def test_counts_that_do_not_add_up_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="do not add up"):
        Manifest(**(FIELDS | changes))


def test_no_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"make one with `qmop prepare`"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda document: document.pop("qmop"), "no manifest written by"),
        (lambda document: document["qmop"].update(version=99), "layout version 99"),
        (lambda document: document["qmop"].pop("plan"), "lacks a field"),
        (lambda document: document["shardlist"][0].update(sha256="0" * 64), "was changed"),
        (lambda document: document["shardlist"].pop(), "do not add up"),
    ],
)
def test_a_changed_manifest_is_refused(
    rendered: Callable[..., Manifest], edit: Callable[[dict[str, Any]], None], named: str
) -> None:
    folder = rendered().folder
    change(Path(folder) / "manifest.json", edit)
    with pytest.raises(ValueError, match=named):
        load_manifest(folder)


def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        load_manifest(str(tmp_path))


def test_verify_names_what_is_missing_and_what_differs(rendered: Callable[..., Manifest]) -> None:
    manifest = rendered()
    verify(manifest)
    folder = Path(manifest.folder)
    (folder / "corpus-000002.tar").unlink()
    changed = bytearray((folder / "corpus-000004.tar").read_bytes())
    changed[700] ^= 1
    (folder / "corpus-000004.tar").write_bytes(changed)
    with pytest.raises(ValueError, match="2 shards differ") as caught:
        verify(manifest)
    assert "corpus-000002.tar is missing" in str(caught.value)
    assert "corpus-000004.tar has other bytes" in str(caught.value)


def test_a_quick_look_names_what_is_missing_or_cut_and_the_way_out(tmp_path: Path) -> None:
    manifest = Manifest(**(FIELDS | {"folder": str(tmp_path)}))
    for shard in SHARDS:
        (tmp_path / shard.url).write_bytes(b"x" * shard.filesize)
    require_all_there(manifest)
    (tmp_path / SHARDS[0].url).unlink()
    (tmp_path / SHARDS[1].url).write_bytes(b"cut")
    with pytest.raises(
        ValueError,
        match=r"2 of 2 shards .* \(corpus-000000.tar is missing; corpus-000001.tar has 3 bytes instead of 9\): run .*"
        "`qmop prepare` again",
    ):
        require_all_there(manifest)
