"""Parquet files as Hugging Face writes them, and as others do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.corpus.samples import Fault, Raw
from pipelines.corpus.sources import parquet
from pipelines.corpus.sources.parquet import ParquetSource

LIMIT = 1_000_000
ASKED = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]


def source_of(place: Path | str, **changes: Any) -> ParquetSource:
    fields = {"files": str(place), "image": "image", "text": None, "identity": "id", "prompt": "Describe."}
    return ParquetSource(**(fields | {"max_bytes": LIMIT} | changes))


def read_all(source: ParquetSource, per_shard: int = 4) -> list[Raw | Fault]:
    return [raw for unit in source.units(per_shard) for raw in source.read(unit)]


def table(rows: list[dict[str, Any]], path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


@pytest.mark.parametrize("row_group_size", [1, 3, 7, 100])
@pytest.mark.parametrize("per_shard", [1, 4, 100])
def test_units_are_exact_to_the_row_whatever_the_row_groups(
    tmp_path: Path, row_group_size: int, per_shard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_ROWS", 2)
    rows = [{"id": number, "image": {"bytes": b"%d" % number, "path": None}, "text": "x"} for number in range(20)]
    table(rows[:11], tmp_path / "a.parquet", row_group_size=row_group_size)
    table(rows[11:], tmp_path / "b.parquet", row_group_size=row_group_size)
    raws = read_all(source_of(tmp_path), per_shard)
    assert [(raw.position, raw.identity, *raw.images) for raw in raws if isinstance(raw, Raw)] == [
        (number, str(number), b"%d" % number) for number in range(20)
    ]
    assert raws[11].origin == {"file": "b.parquet", "row": 0}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ("A caption.", ["Describe.", "A caption."]),
        (ASKED, ["What?", "This."]),
        ([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], ["Q", "A"]),
        (
            [
                {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Q"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
            ],
            ["Q", "A"],
        ),
    ],
)
def test_captions_and_conversations_become_turns(tmp_path: Path, texts: object, said: list[str]) -> None:
    table([{"image": {"bytes": b"x", "path": "a.jpg"}, "words": texts}], tmp_path / "a.parquet")
    (raw,) = read_all(source_of(tmp_path, text="words"))
    assert isinstance(raw, Raw)
    assert [message["text"] for message in raw.messages] == said
    assert [message["role"] for message in raw.messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("image", "texts", "reason"),
    [
        ({"bytes": None, "path": "/etc/passwd"}, ASKED, "missing_image"),
        (None, ASKED, "missing_image"),
        ({"bytes": b"x" * (LIMIT + 1), "path": None}, ASKED, "too_large"),
        ({"bytes": b"x", "path": None}, [{"from": "narrator", "value": "x"}], "bad_record"),
        ({"bytes": b"x", "path": None}, [{"from": "gpt", "value": None}], "no_caption"),
    ],
)
def test_a_bad_row_is_named_and_its_neighbours_live(tmp_path: Path, image: Any, texts: Any, reason: str) -> None:
    good = {"image": {"bytes": b"good", "path": "a"}, "conversations": ASKED}
    table([good, {"image": image, "conversations": texts}, good], tmp_path / "a.parquet")
    first, fault, last = read_all(source_of(tmp_path))
    assert isinstance(first, Raw)
    assert isinstance(last, Raw)
    assert isinstance(fault, Fault)
    assert (fault.reason, fault.origin["row"]) == (reason, 1)


@pytest.mark.parametrize("bad", [0, 3, 6])
@pytest.mark.parametrize("per_shard", [2, 5, 100])
def test_a_text_that_is_not_utf8_costs_its_own_row(
    tmp_path: Path, bad: int, per_shard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_ROWS", 4)
    texts = [b"caption %d" % number if number != bad else b"caption \xff\xfe" for number in range(7)]
    unread = pa.array(texts, pa.binary()).view(pa.string())
    images = pa.array([b"%d" % number for number in range(7)], pa.binary())
    pq.write_table(pa.table({"image": images, "caption": unread}), tmp_path / "a.parquet")
    found = read_all(source_of(tmp_path), per_shard)
    faults = {number: one for number, one in enumerate(found) if isinstance(one, Fault)}
    assert [(number, one.reason, one.origin["row"]) for number, one in faults.items()] == [(bad, "bad_record", bad)]
    assert "utf-8" in faults[bad].detail
    kept = [raw.images[0] for raw in found if isinstance(raw, Raw)]
    assert kept == [b"%d" % number for number in range(7) if number != bad]


def test_lists_of_one_image_and_plain_bytes_are_images(tmp_path: Path) -> None:
    table([{"image": [{"bytes": b"x", "path": None}], "caption": "a"}], tmp_path / "a.parquet")
    table([{"image": b"y", "caption": "b"}], tmp_path / "b.parquet")
    table([{"image": [b"x", b"y"], "caption": "b"}], tmp_path / "c.parquet")
    found = read_all(source_of(tmp_path))
    assert [raw.images for raw in found if isinstance(raw, Raw)] == [(b"x",), (b"y",), (b"x", b"y")]


def test_a_conversation_without_image_is_kept(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    table(
        [{"image": None, "conversations": talk}, {"image": {"bytes": b"x"}, "conversations": ASKED}],
        tmp_path / "a.parquet",
    )
    raw = read_all(source_of(tmp_path))[0]
    assert isinstance(raw, Raw)
    assert raw.images == ()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"image": "photo"}, "image_field: .* has no column photo, only image, caption"),
        ({"text": "words"}, "text_field: .* has no column words, only image, caption"),
    ],
)
def test_a_column_that_is_not_there_is_named(tmp_path: Path, changes: dict[str, str], named: str) -> None:
    table([{"image": {"bytes": b"x"}, "caption": "a"}], tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=named):
        source_of(tmp_path, **changes).units(4)


def test_what_is_no_parquet_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \.parquet file"):
        source_of(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ValueError, match=r"a\.parquet is not a readable parquet file"):
        source_of(tmp_path).units(4)


def test_a_glob_chooses_and_reaches_into_folders_where_it_says_so(tmp_path: Path) -> None:
    for name in ("train-0.parquet", "test-0.parquet", "deep/train-1.parquet"):
        table([{"id": name, "image": {"bytes": b"x"}, "caption": "a"}], tmp_path / name)
    assert [raw.origin["file"] for raw in read_all(source_of(f"{tmp_path}/train*.parquet"))] == ["train-0.parquet"]
    assert len(read_all(source_of(f"{tmp_path}/*/train*.parquet"))) == 1
    assert len(read_all(source_of(tmp_path))) == 2


def test_the_fingerprint_follows_the_data_not_the_place(tmp_path: Path) -> None:
    one = table([{"image": {"bytes": b"x"}, "caption": "a"}], tmp_path / "one" / "a.parquet")
    before = source_of(one.parent).fingerprint()
    one.parent.rename(tmp_path / "two")
    assert source_of(tmp_path / "two").fingerprint() == before
    table([{"image": {"bytes": b"xyz" * 9}, "caption": "a"}], tmp_path / "two" / "a.parquet")
    assert source_of(tmp_path / "two").fingerprint() != before
