from __future__ import annotations

from pathlib import Path

import pytest

from qmop.vtcbench.natural.samples import RowError
from qmop.vtcbench.natural.tables import as_list, files_of, from_base64, from_struct, parquet_rows, split_of, tsv_rows
from tests.qmop.vtcbench.natural.copies import cell, coded, parquet, picture, tsv


def test_rows_share_pictures_backwards_and_forwards(tmp_path: Path) -> None:
    file = tsv(
        tmp_path / "t.tsv",
        [
            {"index": "a", "image": coded(1)},
            {"index": "b", "image": "a"},
            {"index": "c", "image": "d"},
            {"index": "d", "image": coded(2)},
            {"index": "e", "image": "a"},
            {"index": "f", "image": "nowhere"},
            {"index": "g", "image": ""},
        ],
    )
    shown = {row["index"]: row["image"] for row in tsv_rows(file, ())}

    assert shown == {
        "a": coded(1), "b": coded(1), "c": coded(2), "d": coded(2), "e": coded(1), "f": "", "g": "",
    }  # fmt: skip


def test_fields_with_tabs_and_lines_are_whole(tmp_path: Path) -> None:
    file = tsv(tmp_path / "t.tsv", [{"index": "1", "image": coded(), "question": 'a\tb\n"c"'}])

    assert next(tsv_rows(file, ("question",)))["question"] == 'a\tb\n"c"'


def test_pictures_of_every_shape_of_cell(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(picture(5))

    assert from_struct(cell(4), tmp_path)() == picture(4)
    assert from_struct([cell(4)], tmp_path)() == picture(4)
    assert from_struct(picture(4), tmp_path)() == picture(4)
    assert from_struct({"bytes": None, "path": "p.png"}, tmp_path)() == picture(5)
    assert from_base64(coded(4))() == picture(4)
    assert from_base64(str([coded(4)]))() == picture(4)
    for nothing in (None, {"bytes": None, "path": None}, b"", "text"):
        with pytest.raises(RowError, match="holds no picture"):
            from_struct(nothing, tmp_path)
    with pytest.raises(RowError, match="has 2 pictures"):
        from_struct([cell(), cell()], tmp_path)
    with pytest.raises(RowError, match="has 2 pictures"):
        from_base64(str([coded(), coded()]))
    with pytest.raises(ValueError, match="no base64"):
        from_base64("?" * 80)()


def test_only_asked_columns_are_read_and_lists_of_any_spelling(tmp_path: Path) -> None:
    file = parquet(tmp_path / "t.parquet", [{"a": number, "b": 1, "c": 2} for number in range(5)])

    assert [row["a"] for row in parquet_rows(file, ("a",), ("b", "z"))] == [0, 1, 2, 3, 4]
    assert set(next(parquet_rows(file, ("a",), ("b", "z")))) == {"a", "b"}
    assert as_list("['a', \"b\"]") == as_list('["a", "b"]') == ["a", "b"]
    assert as_list("a") == ["a"]


def test_wrong_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")

    with pytest.raises(ValueError, match=r"t\.parquet is not a readable parquet file"):
        list(parquet_rows(tmp_path / "t.parquet", ("a",)))
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no \.parquet file"):
        files_of(tmp_path / "nowhere", ".parquet")
    assert split_of(Path("x/test-00001-of-00004-abc.parquet")) == "test"
    assert split_of(Path("mmstar.parquet")) == "mmstar"
