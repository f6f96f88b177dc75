from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cluster import local, storage
from cluster.conditional import create_if_absent
from cluster.storage import StorageError
from tests.cluster.conftest import listed


def test_what_is_written_is_read_back_and_replaced(root: str) -> None:
    uri = storage.join(root, "deep", "er", "a.bin")
    assert not storage.exists(uri)
    storage.write_atomic(uri, b"one")
    storage.write_atomic(uri, b"second")
    assert storage.exists(uri)
    assert storage.exists(root)
    assert storage.read_bytes(uri) == b"second"
    assert storage.list_sizes(root, recursive=True) == {listed(uri): 6}


def test_reads_as_a_stream_and_hashes_more_than_one_piece(root: str) -> None:
    data = os.urandom(3 * 1024 * 1024 + 17)
    uri = storage.join(root, "big.bin")
    storage.write_atomic(uri, data)
    assert storage.sha256_of(uri) == hashlib.sha256(data).hexdigest()
    with storage.open_read(uri) as stream:
        assert stream.read(5) == data[:5]
        stream.seek(-4, os.SEEK_END)
        assert stream.read() == data[-4:]


def test_a_file_is_copied_in_whole(root: str, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"x" * 2_000_001)
    uri = storage.join(root, "copy.bin")
    storage.put_file(source, uri)
    assert storage.list_sizes(root) == {listed(uri): 2_000_001}
    with pytest.raises(FileNotFoundError, match=r"nothing\.bin"):
        storage.put_file(tmp_path / "nothing.bin", uri)


def test_a_file_is_copied_out_in_pieces_with_its_digest(root: str, tmp_path: Path) -> None:
    data, target = os.urandom(2 * 1024 * 1024 + 3), tmp_path / "copy.bin"
    uri = storage.join(root, "big.bin")
    storage.write_atomic(uri, data)
    assert storage.get_file(uri, target) == hashlib.sha256(data).hexdigest()
    assert target.read_bytes() == data
    with pytest.raises(FileNotFoundError, match=r"missing\.bin does not exist"):
        storage.get_file(storage.join(root, "missing.bin"), target)


def test_listing_is_sorted_filtered_and_as_deep_as_asked(root: str) -> None:
    for name in ("b.tar", "a.tar", "note.txt", "sub/c.tar"):
        storage.write_atomic(storage.join(root, name), b"12")
    here = [listed(storage.join(root, name)) for name in ("a.tar", "b.tar")]
    assert storage.list_files(root, ".tar") == here
    assert storage.list_files(root + "/", ".tar") == here
    assert storage.list_files(root, ".tar", recursive=True) == [*here, listed(storage.join(root, "sub/c.tar"))]
    assert storage.list_files(storage.join(root, "a.tar")) == here[:1]


def test_a_missing_place_is_named_in_one_sentence(root: str) -> None:
    for read in (storage.read_bytes, storage.list_files, storage.sha256_of, storage.open_read):
        with pytest.raises(FileNotFoundError, match="does not exist") as raised:
            read(root)
        assert root in str(raised.value)
        assert "\n" not in str(raised.value)
    storage.remove(storage.join(root, "nothing"))


def test_a_removed_file_is_gone_and_its_neighbour_is_not(root: str) -> None:
    storage.write_atomic(storage.join(root, "a"), b"1")
    storage.write_atomic(storage.join(root, "b"), b"2")
    storage.remove(storage.join(root, "a"))
    assert storage.list_files(root) == [listed(storage.join(root, "b"))]


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("pipe:cat /etc/passwd", "scheme 'pipe'"),
        ("http://host/x", "scheme 'http'"),
        ("gs://bucket/x", "scheme 'gs'"),
        ("simplecache::s3://bucket/x", "scheme 'simplecache'"),
        ("S3://bucket/x", "scheme 'S3'"),
        ("s3:/bucket/x", "no bucket"),
        ("s3://", "no bucket"),
        ("file://otherhost/x", "not a local file"),
        ("file:relative", "not a local file"),
    ],
)
def test_other_schemes_are_refused_everywhere(uri: str, says: str) -> None:
    for use in (storage.exists, storage.read_bytes, storage.list_files, storage.arrow_filesystem, storage.remove):
        with pytest.raises(ValueError, match=says):
            use(uri)
    for write in (storage.write_atomic, create_if_absent):
        with pytest.raises(ValueError, match=says):
            write(uri, b"")


def test_a_local_name_with_a_colon_can_be_written_with_a_leading_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_atomic("./a:b.txt", b"x")
    assert storage.read_bytes(tmp_path / "a:b.txt") == b"x"


def test_a_file_uri_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_bytes(b"x")
    assert storage.read_bytes(f"file://{tmp_path}/a%20b.txt") == b"x"
    assert storage.read_bytes(f"file://localhost{tmp_path}/a%20b.txt") == b"x"


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_atomic(tmp_path / "a", b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        storage.write_atomic(tmp_path / "a", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_half_written_neighbour_is_never_listed(tmp_path: Path) -> None:
    with local.finished_beside(tmp_path / "a", (tmp_path / "a").open("w+b")) as temporary:
        assert temporary.exists()
        assert storage.list_files(tmp_path) == [str(tmp_path / "a")]


def test_a_folder_in_the_way_is_an_error_for_the_user(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="directory"):
        storage.read_bytes(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="file/below"):
        storage.write_atomic(tmp_path / "file" / "below", b"")


def test_written_files_get_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    storage.write_atomic(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_trees_are_removed_only_locally(tmp_path: Path) -> None:
    storage.write_atomic(tmp_path / "a" / "b" / "c", b"")
    storage.remove_tree(tmp_path / "a")
    storage.remove_tree(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="not a local folder"):
        storage.remove_tree("s3://bucket/a")


def test_arrow_gets_an_absolute_path_when_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.arrow_filesystem("runs") == (None, str(tmp_path / "runs"))


def test_join_puts_one_slash_between() -> None:
    assert storage.join("s3://bucket/", "/a/", "b") == "s3://bucket/a/b"
    assert storage.join(Path("/x"), "a.tar") == "/x/a.tar"
    assert storage.join("/", "a") == "/a"


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "deep" / "one.txt").write_text("1")
    home = tmp_path / "home"
    home.mkdir()
    (home / "there").symlink_to(tmp_path / "far")
    (home / "two.txt").symlink_to(tmp_path / "far" / "deep" / "one.txt")
    (tmp_path / "far" / "back").symlink_to(home)
    (home / "nowhere").symlink_to(tmp_path / "gone")
    found = [name.removeprefix(f"{home}/") for name in storage.list_files(home, recursive=True)]
    assert found == ["there/deep/one.txt", "two.txt"]


def test_a_stamp_changes_with_the_file_and_with_nothing_else(root: str) -> None:
    storage.write_atomic(storage.join(root, "a"), b"1234")
    before = storage.list_stamps(root)
    assert storage.list_stamps(root) == before
    storage.write_atomic(storage.join(root, "a"), b"4321")
    after = storage.list_stamps(root)
    assert list(after) == list(before) == [listed(storage.join(root, "a"))]
    assert after != before


def test_what_is_appended_stands_at_the_end_and_only_locally(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/deep/log.jsonl"
    for data in (b"one\n", b"", b"two\n"):
        storage.append(uri, data)
    assert storage.read_bytes(uri) == b"one\ntwo\n"
    with pytest.raises(ValueError, match="not a local file"):
        storage.append("s3://bucket/log.jsonl", b"x")
    with pytest.raises(StorageError, match="cannot be used"):
        storage.append(tmp_path / "deep", b"x")
