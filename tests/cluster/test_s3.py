from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pyarrow.fs as pafs
import pytest
import s3fs

from cluster import s3, storage
from cluster.ports import free_port
from cluster.storage import StorageError

BUCKET = "test-bucket"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """An endpoint that accepts connections and then says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_dead_endpoint_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    started = time.monotonic()
    for use in (storage.exists, storage.read_bytes, storage.list_files, storage.arrow_filesystem):
        with pytest.raises(StorageError, match=f"{url} does not answer"):
            use(f"s3://{BUCKET}/a")
    assert time.monotonic() - started < 5


def test_a_silent_endpoint_fails_within_ten_seconds(monkeypatch: pytest.MonkeyPatch, silent_server: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", silent_server)
    started = time.monotonic()
    with pytest.raises(StorageError, match="does not answer"):
        storage.read_bytes(f"s3://{BUCKET}/a")
    assert time.monotonic() - started < 10


@pytest.mark.pipeline
def test_an_endpoint_that_goes_away_later_fails_within_ten_seconds(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert s3_server
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setattr(s3, "_reached", {url})
    started = time.monotonic()
    with pytest.raises(StorageError, match="cannot be reached"):
        storage.read_bytes(f"s3://{BUCKET}/a")
    assert time.monotonic() - started < 10
    assert url not in s3._reached  # so that the next use asks the endpoint first


def test_an_endpoint_that_is_no_url_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(ValueError, match=r"AWS_ENDPOINT_URL='localhost:9000' is not an endpoint"):
        storage.exists(f"s3://{BUCKET}/a")


@pytest.mark.pipeline
def test_missing_credentials_are_named(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3_server
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match="needs credentials"):
        storage.read_bytes(f"s3://{BUCKET}/a")
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.pipeline
def test_a_missing_bucket_is_missing_to_readers_and_writers(s3_server: str) -> None:
    assert s3_server
    with pytest.raises(FileNotFoundError, match="s3://no-such-bucket/a does not exist"):
        storage.list_files("s3://no-such-bucket/a")
    with pytest.raises(FileNotFoundError, match="s3://no-such-bucket/a does not exist"):
        storage.write_atomic("s3://no-such-bucket/a", b"")


@pytest.mark.pipeline
def test_an_empty_bucket_lists_nothing_and_markers_are_no_files(s3_server: str) -> None:
    assert s3_server
    assert storage.list_files(f"s3://{BUCKET}") == []
    s3.filesystem().pipe_file(f"{BUCKET}/folder/", b"")
    storage.write_atomic(f"s3://{BUCKET}/folder/a", b"1")
    assert storage.list_sizes(f"s3://{BUCKET}/folder") == {f"s3://{BUCKET}/folder/a": 1}
    assert storage.list_sizes(f"s3://{BUCKET}", recursive=True) == {f"s3://{BUCKET}/folder/a": 1}


@pytest.mark.pipeline
def test_what_another_process_writes_is_seen_at_once(s3_server: str) -> None:
    assert s3_server
    storage.write_atomic(f"s3://{BUCKET}/f/a", b"1")
    assert len(storage.list_files(f"s3://{BUCKET}/f")) == 1
    storage.arrow_filesystem(f"s3://{BUCKET}")[0].open_output_stream(f"{BUCKET}/f/b").close()  # type: ignore[union-attr]
    assert len(storage.list_files(f"s3://{BUCKET}/f")) == 2


@pytest.mark.pipeline
def test_arrow_reaches_the_same_objects(s3_server: str) -> None:
    assert s3_server
    storage.write_atomic(f"s3://{BUCKET}/runs/a", b"content")
    filesystem, path = storage.arrow_filesystem(f"s3://{BUCKET}/runs")
    assert path == f"{BUCKET}/runs"
    assert isinstance(filesystem, pafs.S3FileSystem)
    assert filesystem.open_input_stream(f"{path}/a").read() == b"content"
