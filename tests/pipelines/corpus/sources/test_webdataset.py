"""WebDataset tars and the index beside them; odd members are tried in the table of faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.corpus.samples import Fault, Raw
from pipelines.corpus.sources.webdataset import WebDatasetSource
from tests.pipelines.corpus.formats import Member, write_members


def source_of(place: Path) -> WebDatasetSource:
    return WebDatasetSource(str(place), "Describe.", 100)


def read_all(place: Path, per_shard: int = 2) -> list[Raw | Fault]:
    source = source_of(place)
    return [raw for unit in source.units(per_shard) for raw in source.read(unit)]


def pair(key: str, caption: str = "c") -> list[Member]:
    return [Member(f"{key}.jpg", key.encode()), Member(f"{key}.txt", caption.encode())]


def index(folder: Path, *shards: tuple[str, int], kind: str = "wids-shard-index-v1") -> None:
    listed = [{"url": url, "nsamples": count} for url, count in shards]
    (folder / "index.json").write_text(json.dumps({"__kind__": kind, "shardlist": listed}))


def test_units_cross_tars_and_carry_the_places(tmp_path: Path) -> None:
    write_members(tmp_path / "a.tar", pair("1") + pair("2") + pair("3"))
    write_members(tmp_path / "b.tar", pair("1") + pair("5"))
    found = read_all(tmp_path)
    assert [(raw.position, *raw.images, raw.origin["file"]) for raw in found if isinstance(raw, Raw)] == [
        (0, b"1", "a.tar"),
        (1, b"2", "a.tar"),
        (2, b"3", "a.tar"),
        (3, b"1", "b.tar"),
        (4, b"5", "b.tar"),
    ]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"caption": "from json"}, ["Describe.", "from json"]),
        ({"text": "from json"}, ["Describe.", "from json"]),
        ({"caption": None, "text": " "}, ["Describe.", "from txt"]),
        ({"conversations": [{"from": "human", "value": "<image>Q"}, {"from": "gpt", "value": "A"}]}, ["Q", "A"]),
        ([1, 2], ["Describe.", "from txt"]),
    ],
)
def test_json_speaks_before_txt(tmp_path: Path, record: Any, said: list[str]) -> None:
    write_members(tmp_path / "a.tar", [*pair("1", "from txt"), Member("1.json", json.dumps(record).encode())])
    (raw,) = read_all(tmp_path)
    assert isinstance(raw, Raw)
    assert [message["text"] for message in raw.messages] == said


def test_a_conversation_without_image_is_kept_and_a_caption_is_not(tmp_path: Path) -> None:
    talk = {"id": "t", "messages": [{"role": "user", "text": "Q"}, {"role": "assistant", "text": "A"}]}
    seeing = talk | {"image": True}
    members = [Member(f"{key}.json", json.dumps(value).encode()) for key, value in (("1", talk), ("2", seeing))]
    write_members(tmp_path / "a.tar", [*members, Member("3.txt", b"caption")])
    raw, *faults = read_all(tmp_path)
    assert isinstance(raw, Raw)
    assert (raw.images, raw.identity) == ((), "t")
    assert [fault.reason for fault in faults if isinstance(fault, Fault)] == ["missing_image"] * 2


def test_an_index_chooses_the_tars_and_knows_what_is_lost(tmp_path: Path) -> None:
    for name in ("a", "b", "other"):
        write_members(tmp_path / f"{name}.tar", pair("1") + pair("2"))
    index(tmp_path, ("b.tar", 2), ("a.tar", 2), ("gone.tar", 3))
    found = read_all(tmp_path)
    assert [raw.origin["file"] for raw in found] == ["b.tar"] * 2 + ["a.tar"] * 2 + ["gone.tar"] * 3
    assert [raw.reason for raw in found if isinstance(raw, Fault)] == ["damaged_file"] * 3


@pytest.mark.parametrize("url", ["pipe:cat a.tar", "../a.tar", "/tmp/a.tar", "s3://other/a.tar"])
def test_an_index_leads_nowhere_else(tmp_path: Path, url: str) -> None:
    write_members(tmp_path / "a.tar", pair("1"))
    index(tmp_path, (url, 1))
    with pytest.raises(ValueError, match="lists a shard elsewhere"):
        source_of(tmp_path)


def test_a_damaged_index_is_named_and_a_foreign_json_is_none(tmp_path: Path) -> None:
    write_members(tmp_path / "a.tar", pair("1"))
    index(tmp_path, ("x.tar", 9), kind="something else")
    assert len(read_all(tmp_path)) == 1
    (tmp_path / "index.json").write_text('{"__kind__": "wids-shard-index-v1"}')
    with pytest.raises(ValueError, match="is not a readable wids index"):
        source_of(tmp_path)


def test_an_index_with_half_a_surrogate_pair_is_damaged(tmp_path: Path) -> None:
    write_members(tmp_path / "a.tar", pair("1"))
    index(tmp_path, ("\ud800.tar", 1))
    with pytest.raises(ValueError, match=r"index\.json is not a readable wids index \(.*surrogates"):
        source_of(tmp_path)


def test_a_folder_without_tars_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \.tar file"):
        source_of(tmp_path)
