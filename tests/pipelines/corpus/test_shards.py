"""Shards: the same bytes for the same samples, and nothing hostile on the way back."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable

import pytest

from pipelines.corpus.samples import Sample
from pipelines.corpus.shards import ShardError, digests, encode_shard, index_shard

SAMPLES = [
    Sample(key="000000000-a", images=(b"jpeg bytes",), extensions=("jpg",), record={"id": "a"}),
    Sample(key="000000001-b", record={"id": "b", "text": "größer"}),
    Sample(key="000000002-c", images=(b"",), extensions=("png",), record={"id": "c"}),
]


def tar_of(members: list[tuple[str, bytes]], change: Callable[[tarfile.TarInfo], None] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            if change:
                change(header)
            tar.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


def test_a_shard_reads_back_as_written() -> None:
    data = encode_shard(SAMPLES)
    entries = index_shard(data, "s")
    assert [entry.key for entry in entries] == [sample.key for sample in SAMPLES]
    assert [entry.images for entry in entries] == [["jpg"], [], ["png"]]
    assert entries[0].part(data, "jpg") == b"jpeg bytes"
    assert entries[1].part(data, "json") == '{"id":"b","text":"größer"}'.encode()


def test_several_images_read_back_in_order() -> None:
    images = tuple(b"%d" % number for number in range(12))
    sample = Sample(key="k", images=images, extensions=("jpg", "png") * 6, record={})
    data = encode_shard([sample])
    (entry,) = index_shard(data, "s")
    assert entry.images[9:] == ["9.png", "10.jpg", "11.png"]
    assert tuple(entry.part(data, extension) for extension in entry.images) == images


def test_the_bytes_of_a_shard_are_known() -> None:
    sha256, md5 = digests(encode_shard(SAMPLES))
    assert sha256 == "31fb2f19ac441f3ac310816d6b1a37fe2fb6a01f54c6dd8846c110731b8f2776"
    assert len(md5) == 32


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4, 0.6])
def test_a_shard_that_is_cut_is_refused(share: float) -> None:
    data = encode_shard([Sample(key=f"k{n}", images=(b"x" * 3000,), extensions=("jpg",), record={}) for n in range(5)])
    with pytest.raises(ShardError, match=r"shard cut\.tar: the archive is damaged"):
        index_shard(data[: int(len(data) * share)], "cut.tar")


@pytest.mark.parametrize("data", [b"", b"\x80\x04\x95not a tar", b"x" * 2000, b"x" * 2048 + bytes(1024)])
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(ShardError, match="damaged"):
        index_shard(data, "x.tar")


@pytest.mark.parametrize(
    ("members", "named"),
    [
        (["/etc/passwd.json"], "no plain file name"),
        (["../a.json"], "no plain file name"),
        (["folder/a.json"], "no plain file name"),
        (["a\\b.json"], "no plain file name"),
        (["a.pkl"], "is not one of"),
        (["a.pyd"], "is not one of"),
        ([".json"], "is not one of"),
        (["a.jpg"], "expected json and one image"),
        (["a.jpg", "a.png", "a.json"], "expected json and one image"),
        (["a.json", "b.json", "a.jpg"], "do not stand together"),
        (["a.json", "a.json"], "is there twice"),
        (["a.0.jpg", "a.json"], "several images numbered from 0"),
        (["a.0.jpg", "a.2.jpg", "a.json"], "several images numbered from 0"),
        (["a.1.jpg", "a.2.jpg", "a.json"], "several images numbered from 0"),
        (["a.0.jpg", "a.1.jpg", "a.jpg", "a.json"], "several images numbered from 0"),
        (["a.0.jpg", "a.0.png", "a.json"], "several images numbered from 0"),
        (["a.0.jpg", "a.1.jpg"], "several images numbered from 0"),
        (["a.00.jpg", "a.1.jpg", "a.json"], "is not one of"),
        (["a.0.json", "a.json"], "is not one of"),
        (["a.0.pkl", "a.json"], "is not one of"),
    ],
)
def test_names_are_not_trusted(members: list[str], named: str) -> None:
    with pytest.raises(ShardError, match=named):
        index_shard(tar_of([(name, b"{}") for name in members]), "x.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_only_plain_files_are_read(kind: bytes) -> None:
    def change(header: tarfile.TarInfo) -> None:
        header.type, header.linkname, header.size = kind, "/etc/passwd", 0

    with pytest.raises(ShardError, match="only plain files"):
        index_shard(tar_of([("a.json", b"")], change), "x.tar")
