from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import local, storage
from cluster.storage import StorageError

BUCKET = "test-bucket"


@pytest.fixture(params=["local", "file", pytest.param("s3", marks=pytest.mark.pipeline)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that does not exist yet, in each kind of storage."""
    if request.param == "s3":
        request.getfixturevalue("s3_server")
        return f"s3://{BUCKET}/folder"
    return f"{'file://' if request.param == 'file' else ''}{tmp_path}/folder"


def test_what_is_written_is_read_back_and_replaced(root: str) -> None:
    uri = storage.join(root, "deep", "er", "a.bin")
    assert not storage.exists(uri)
    storage.write_atomic(uri, b"one")
    storage.write_atomic(uri, b"second")
    assert storage.exists(uri)
    assert storage.exists(root)
    assert storage.read_bytes(uri) == b"second"
    assert storage.list_sizes(root, recursive=True) == {_listed(uri): 6}


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
    assert storage.list_sizes(root) == {_listed(uri): 2_000_001}
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
    here = [_listed(storage.join(root, name)) for name in ("a.tar", "b.tar")]
    assert storage.list_files(root, ".tar") == here
    assert storage.list_files(root + "/", ".tar") == here
    assert storage.list_files(root, ".tar", recursive=True) == [*here, _listed(storage.join(root, "sub/c.tar"))]
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
    assert storage.list_files(root) == [_listed(storage.join(root, "b"))]


def test_of_many_creators_exactly_one_wins_and_its_content_stands(root: str) -> None:
    start = threading.Barrier(8)

    def create(number: int, uri: str) -> bool:
        start.wait()
        return storage.create_if_absent(uri, b"%d" % number * 1000)

    rounds = 5 if root.startswith("s3:") else 40  # a check before the write loses only some of the races
    with ThreadPoolExecutor(8) as pool:
        for number in range(rounds):
            uri = storage.join(root, f"lease-{number}")
            won = list(pool.map(create, range(8), [uri] * 8))
            assert sum(won) == 1
            assert storage.read_bytes(uri) == b"%d" % won.index(True) * 1000
    assert len(storage.list_files(root)) == rounds


def test_of_many_replacers_with_one_version_exactly_one_wins(root: str) -> None:
    uri = storage.join(root, "lease")
    storage.write_atomic(uri, b"0")
    start = threading.Barrier(8)

    def replace(number: int, version: str) -> str | None:
        start.wait()
        return storage.replace_if_match(uri, b"%d" % number * 1000, version)

    rounds = 5 if root.startswith("s3:") else 40
    with ThreadPoolExecutor(8) as pool:
        for number in range(rounds):
            _, version = storage.read_versioned(uri)
            numbers = range(10 + 8 * number, 18 + 8 * number)
            got = list(pool.map(replace, numbers, [version] * 8))
            (winner,) = [(one, new) for one, new in zip(numbers, got, strict=True) if new is not None]
            assert storage.read_versioned(uri) == (b"%d" % winner[0] * 1000, winner[1])
    assert storage.list_files(root) == [_listed(uri)]


def test_only_the_version_that_was_read_is_replaced(root: str) -> None:
    uri = storage.join(root, "a")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        storage.read_versioned(uri)
    storage.write_atomic(uri, b"one")
    _, first = storage.read_versioned(uri)
    second = storage.replace_if_match(uri, b"two", first)
    assert second is not None
    assert storage.replace_if_match(uri, b"three", first) is None
    assert storage.read_versioned(uri) == (b"two", second)
    storage.remove(uri)
    assert storage.replace_if_match(uri, b"three", second) is None
    assert not storage.exists(uri)


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
    for write in (storage.write_atomic, storage.create_if_absent):
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


def _listed(uri: str) -> str:
    return uri.removeprefix("file://")
