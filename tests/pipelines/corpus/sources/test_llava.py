"""LLaVA records, good and bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.corpus.samples import Fault, Raw
from pipelines.corpus.sources.llava import LlavaSource

LIMIT = 1_000_000


def read_all(source: LlavaSource, per_shard: int = 5) -> list[Raw | Fault]:
    return [raw for unit in source.units(per_shard) for raw in source.read(unit)]


def source_of(llava: Any) -> LlavaSource:
    llava.save()
    return LlavaSource(str(llava.annotations), str(llava.images), LIMIT)


def test_good_records_come_in_order_without_their_image_token(llava: Any, jpegs: list[bytes]) -> None:
    raws = read_all(source_of(llava))
    assert [raw.position for raw in raws if isinstance(raw, Raw)] == list(range(18))
    assert [raw.images for raw in raws if isinstance(raw, Raw)] == [(data,) for data in jpegs]
    first = raws[0]
    assert isinstance(first, Raw)
    assert first.messages[0] == {"role": "user", "text": "What is to be seen?"}
    assert first.origin == {"file": "train.json", "record": 0, "id": "photo.0.jpg", "image": "photo.0.jpg"}


def test_text_only_rows_are_kept(llava: Any) -> None:
    llava.records = [{"id": 7, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}]
    (raw,) = read_all(source_of(llava))
    assert isinstance(raw, Raw)
    assert (raw.images, raw.identity, raw.messages[1]["text"]) == ((), "7", "Ho")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": "gone.jpg"}, "missing_image"),
        ({"image": "nested"}, "missing_image"),
        ({"image": "photo.0.jpg/x.jpg"}, "missing_image"),
        ({"image": "x" * 300 + ".jpg"}, "missing_image"),
        ({"image": None}, "missing_image"),
        ({"image": "half a pair \ud800.jpg"}, "missing_image"),
        ({"image": ["photo.0.jpg", "\udfff"]}, "bad_record"),
        ({"image": "../train.json"}, "unsafe_path"),
        ({"image": "/etc/hostname"}, "unsafe_path"),
        ({"image": "pipe:cat"}, "unsafe_path"),
        ({"image": "https://example.org/a.jpg"}, "unsafe_path"),
        ({"image": ["photo.0.jpg", "photo.2.jpg"]}, "bad_record"),
        ({"image": ["photo.0.jpg", 7]}, "bad_record"),
        ({"image": []}, "missing_image"),
        ({"conversations": None}, "no_caption"),
        ({"conversations": []}, "no_caption"),
        ({"conversations": {"from": "human"}}, "bad_record"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "bad_record"),
        ({"conversations": [{"from": "human", "value": 3}]}, "bad_record"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt"}]}, "no_caption"),
    ],
)
def test_a_bad_record_is_named_and_its_neighbours_live(llava: Any, changes: dict[str, Any], reason: str) -> None:
    llava.records[1] |= changes
    raws = read_all(source_of(llava))
    assert len(raws) == 18
    faults = [raw for raw in raws if isinstance(raw, Fault)]
    assert [fault.reason for fault in faults] == [reason]
    assert faults[0].origin["record"] == 1


def test_a_record_that_is_no_object_is_named(llava: Any) -> None:
    llava.records[0] = "just words"
    fault = read_all(source_of(llava))[0]
    assert isinstance(fault, Fault)
    assert (fault.reason, fault.detail) == ("bad_record", "the record is a JSON text, expected an object")


def test_a_file_over_the_limit_is_not_read_whole(llava: Any, jpegs: list[bytes]) -> None:
    llava.save()
    source = LlavaSource(str(llava.annotations), str(llava.images), len(jpegs[0]) - 1)
    fault = read_all(source)[0]
    assert isinstance(fault, Fault)
    assert fault.reason == "too_large"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"id": 1}', "holds a JSON object, expected a list"),
        ("[", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "is an empty list"),
    ],
)
def test_a_file_that_is_no_list_is_named(llava: Any, text: str, named: str) -> None:
    llava.annotations.write_text(text)
    source = LlavaSource(str(llava.annotations), str(llava.images), LIMIT)
    with pytest.raises(ValueError, match=named) as caught:
        source.units(5)
    assert str(llava.annotations) in str(caught.value)


def test_paths_that_are_not_there_are_named(llava: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        LlavaSource(str(llava.annotations), str(tmp_path / "nowhere"), LIMIT)
    with pytest.raises(FileNotFoundError, match=r"no\.json"):
        LlavaSource(str(tmp_path / "no.json"), str(llava.images), LIMIT).fingerprint()


def test_the_fingerprint_follows_the_data_not_the_place(llava: Any, tmp_path: Path) -> None:
    before = source_of(llava).fingerprint()
    moved = tmp_path / "moved"
    llava.images.parent.rename(moved)
    assert LlavaSource(str(moved / "train.json"), str(moved / "images"), LIMIT).fingerprint() == before
    (moved / "images" / "photo.0.jpg").write_bytes(b"other")
    changed = LlavaSource(str(moved / "train.json"), str(moved / "images"), LIMIT).fingerprint()
    (moved / "train.json").write_text(json.dumps([]))
    assert (
        len({before, changed, LlavaSource(str(moved / "train.json"), str(moved / "images"), LIMIT).fingerprint()}) == 3
    )
