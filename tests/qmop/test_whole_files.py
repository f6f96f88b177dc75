from pathlib import Path

import pytest

from qmop.whole_files import whole_folder, write_whole


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    place = tmp_path / "new" / "file"
    write_whole(place, b"first")
    write_whole(place, b"second")
    assert place.read_bytes() == b"second"
    assert list(place.parent.iterdir()) == [place]


def test_what_cannot_be_put_in_place_leaves_no_draft(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_whole(tmp_path / "taken", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "made") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "made").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "a").read_text() == "a"


def test_a_folder_that_could_not_be_filled_is_gone(tmp_path: Path) -> None:
    def fill() -> None:
        with whole_folder(tmp_path / "made") as folder:
            (folder / "a").write_text("a")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fill()
    assert list(tmp_path.iterdir()) == []
