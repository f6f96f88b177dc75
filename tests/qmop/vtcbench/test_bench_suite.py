from __future__ import annotations

import hashlib
import json
from pathlib import Path
from unittest.mock import patch

import pytest

from qmop.vtcbench import suite as suite_module
from qmop.vtcbench.rendered import RenderedItem, suite_digest
from qmop.vtcbench.suite import SuiteManifest, decode_shard, load_suite, read_shard, write_suite


@pytest.fixture
def written(tmp_path: Path) -> SuiteManifest:
    return write_suite(tmp_path / "suite", seed=0, count=40, items_per_shard=15)


def test_a_suite_is_cut_into_shards_that_hold_its_items(
    written: SuiteManifest, small_suite: list[RenderedItem]
) -> None:
    items = [rendered for shard in written.shards for rendered in read_shard(written.folder, shard)]

    assert items == small_suite
    assert [(shard.url, shard.count) for shard in written.shards] == [
        ("suite-000000.tar", 15),
        ("suite-000001.tar", 15),
        ("suite-000002.tar", 10),
    ]
    assert written.digest == suite_digest(small_suite)
    assert dict(written.dimensions) == {"GU": 8, "SC": 8, "RC": 8, "SE": 8, "LD": 8}


def test_the_manifest_is_a_wids_index_of_true_facts(written: SuiteManifest) -> None:
    index = json.loads((Path(written.folder) / "manifest.json").read_text())

    assert (index["__kind__"], index["wids_version"]) == ("wids-shard-index-v1", 1)
    for shard in index["shardlist"]:
        data = (Path(written.folder) / shard["url"]).read_bytes()
        assert shard["filesize"] == len(data)
        assert shard["md5sum"] == hashlib.md5(data).hexdigest()
        assert shard["sha256"] == hashlib.sha256(data).hexdigest()
    assert sum(shard["nsamples"] for shard in index["shardlist"]) == index["qmop"]["count"] == 40
    assert load_suite(written.folder) == written


def test_two_folders_get_the_same_bytes(written: SuiteManifest, tmp_path: Path) -> None:
    other = write_suite(tmp_path / "other", seed=0, count=40, items_per_shard=15)

    assert other.shards == written.shards
    assert other.digest == written.digest
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_a_complete_suite_is_left_alone(written: SuiteManifest) -> None:
    with patch.object(suite_module, "pack_shard", side_effect=AssertionError("drawn again")):
        assert write_suite(written.folder, seed=0, count=40, items_per_shard=15) == written


def test_a_half_written_suite_is_finished(written: SuiteManifest) -> None:
    home = Path(written.folder)
    (home / "manifest.json").unlink()
    (home / "suite-000001.tar").write_bytes(b"half")
    (home / "suite-000002.tar").unlink()
    seen: list[tuple[int, int]] = []

    again = write_suite(home, 0, 40, 15, progress=lambda done, total: seen.append((done, total)))

    assert again == written
    assert seen == [(15, 40), (30, 40), (40, 40)]
    assert len(read_shard(home, again.shards[1])) == 15


@pytest.mark.parametrize(
    ("seed", "count", "per_shard", "words"),
    [(1, 40, 15, "seed 0, not 1"), (0, 41, 15, "count 40, not 41"), (0, 40, 10, "items_per_shard 15, not 10")],
)
def test_another_complete_suite_is_never_overwritten(
    written: SuiteManifest, seed: int, count: int, per_shard: int, words: str
) -> None:
    with pytest.raises(ValueError, match=f"{words}; choose another folder"):
        write_suite(written.folder, seed, count, per_shard)

    assert load_suite(written.folder) == written


def test_a_suite_of_an_older_renderer_is_noticed(written: SuiteManifest) -> None:
    with (
        patch.object(suite_module, "probe_digest", return_value="another"),
        pytest.raises(ValueError, match=r"complete suite of probe .* not another"),
    ):
        write_suite(written.folder, 0, 40, 15)


def test_a_shard_gone_or_cut_is_noticed(written: SuiteManifest) -> None:
    path = Path(written.folder) / written.shards[1].url
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"suite-000001\.tar is missing or cut short"):
        write_suite(written.folder, 0, 40, 15)
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(ValueError, match=r"suite-000001\.tar is damaged"):
        read_shard(written.folder, written.shards[1])
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"suite-000001\.tar is missing"):
        read_shard(written.folder, written.shards[1])


def test_shards_can_be_read_from_bytes_of_anywhere(written: SuiteManifest, small_suite: list[RenderedItem]) -> None:
    data = (Path(written.folder) / written.shards[2].url).read_bytes()

    assert decode_shard(data, written.shards[2]) == small_suite[30:]


@pytest.mark.parametrize(
    ("seed", "count", "per_shard", "words"),
    [(-1, 5, 5, "seed is -1"), (0, 0, 5, "count is 0"), (0, 5, 0, "items_per_shard is 0")],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, seed: int, count: int, per_shard: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write_suite(tmp_path, seed, count, per_shard)


def test_folders_without_a_sound_manifest_are_refused(written: SuiteManifest, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no suite at .*nowhere"):
        load_suite(tmp_path / "nowhere")
    path = Path(written.folder) / "manifest.json"
    sound = json.loads(path.read_text())
    for text, words in [
        ("{", "no suite manifest"),
        ("[]", "no suite manifest"),
        (json.dumps({**sound, "qmop": {}}), "no suite manifest"),
        (json.dumps({**sound, "qmop": {**sound["qmop"], "format": 9}}), "format 9"),
        (json.dumps({**sound, "qmop": {**sound["qmop"], "count": 39}}), "do not add up to its count 39"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            load_suite(written.folder)
