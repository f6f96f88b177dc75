from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs import report_pictures
from jobs.report_pictures import pictures_of
from qmop.vtcbench.records import Record, judge
from qmop.vtcbench.suite import SuiteManifest, read_shard, write_suite


@pytest.fixture
def suite(tmp_path: Path) -> SuiteManifest:
    """Of three shards."""
    return write_suite(tmp_path / "suite", 3, 30, 10)


@pytest.fixture
def records(suite: SuiteManifest) -> list[Record]:
    facts = {"checkpoint": "c", "label": "l", "method": "m", "budget": 1, "visual_tokens": 1}
    return [
        judge(rendered.item, "", **facts, suite_digest=suite.digest, shard=shard.url)
        for shard in suite.shards
        for rendered in read_shard(suite.folder, shard)
    ]


def test_only_the_shards_of_what_is_asked_for_are_read(
    suite: SuiteManifest, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    inner = report_pictures.read_bytes
    monkeypatch.setattr(report_pictures, "read_bytes", lambda uri: (read.append(Path(uri).name), inner(uri))[1])
    pictures = {r.item.key: r.image for shard in suite.shards for r in read_shard(suite.folder, shard)}
    keys = {records[3].key, records[25].key}

    assert pictures_of(keys, records, suite.folder, given=False) == {key: pictures[key] for key in keys}
    assert read == ["manifest.json", "suite-000000.tar", "suite-000002.tar"]


def test_nothing_is_read_where_no_picture_is_needed(records: list[Record]) -> None:
    assert pictures_of(set(), records, "/nowhere", given=False) == {}


def test_a_suite_that_was_moved_is_named_with_the_way_out(suite: SuiteManifest, records: list[Record]) -> None:
    keys, way_out = {records[0].key}, "name its folder by --suite, or write the report without pictures: --samples 0"
    Path(suite.folder, "suite-000000.tar").unlink()
    with pytest.raises(FileNotFoundError, match=rf"^suite is '.*/suite', but its suite-000000.tar is gone: {way_out}"):
        pictures_of(keys, records, suite.folder, given=True)
    Path(suite.folder).rename(Path(suite.folder).with_name("elsewhere"))
    with pytest.raises(FileNotFoundError, match=rf"^the suite lay at '.*/suite' .* no manifest.json now: {way_out}"):
        pictures_of(keys, records, suite.folder, given=False)


def test_another_suite_s_pictures_are_not_taken(suite: SuiteManifest, records: list[Record]) -> None:
    others = [replace(record, suite_digest="0123456789abcdef") for record in records]
    with pytest.raises(
        ValueError, match=f"a suite of digest {suite.digest[:12]} is there .* of 0123456789ab: name its"
    ):
        pictures_of({records[0].key}, others, suite.folder, given=True)
