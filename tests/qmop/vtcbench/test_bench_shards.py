from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset as wds
from PIL import Image

from qmop.vtcbench.rendered import RenderedItem
from qmop.vtcbench.shards import pack_shard, unpack_shard


def _tar(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_items_come_back_in_order_and_equal_items_give_equal_bytes(small_suite: list[RenderedItem]) -> None:
    data = pack_shard(small_suite[:7])

    assert unpack_shard(data, "s") == small_suite[:7]
    assert pack_shard(small_suite[:7]) == data


def test_the_archive_is_plain_ustar_with_blank_times_and_owners(small_suite: list[RenderedItem]) -> None:
    with tarfile.open(fileobj=io.BytesIO(pack_shard(small_suite[:2]))) as tar:
        members = tar.getmembers()

    assert [member.name.rpartition(".")[2] for member in members] == ["png", "json"] * 2
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
        (0, 0, 0, "", 0o644)
    }
    assert not any(member.pax_headers for member in members)


def test_a_stock_webdataset_reader_reads_it(small_suite: list[RenderedItem], tmp_path: Path) -> None:
    shard = tmp_path / "suite-000000.tar"
    shard.write_bytes(pack_shard(small_suite[:5]))

    samples = list(wds.WebDataset(str(shard), shardshuffle=False))

    assert [sample["__key__"] for sample in samples] == [rendered.item.key for rendered in small_suite[:5]]
    assert [sample["png"] for sample in samples] == [rendered.image for rendered in small_suite[:5]]


def test_photographs_keep_their_own_format(small_suite: list[RenderedItem]) -> None:
    pictures = {}
    for name in ("JPEG", "WEBP"):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(buffer, name)
        pictures[name] = buffer.getvalue()
    items = [replace(rendered, image=image) for rendered, image in zip(small_suite[:2], pictures.values(), strict=True)]

    data = pack_shard(items)

    assert unpack_shard(data, "s") == items
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [name.rpartition(".")[2] for name in tar.getnames()] == ["jpg", "json", "webp", "json"]
    with pytest.raises(ValueError, match="expected PNG, JPEG or WebP"):
        pack_shard([replace(small_suite[0], image=b"GIF89a")])


def test_wrong_archives_are_refused_by_name(small_suite: list[RenderedItem]) -> None:
    facts = small_suite[0].item.to_json()
    key = small_suite[0].item.key
    link = io.BytesIO()
    with tarfile.open(fileobj=link, mode="w") as tar:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(member)

    for data, words in [
        (b"no tar at all" * 100, "no readable tar"),
        (pack_shard(small_suite[:1])[:3000], "no readable tar|picture and"),
        (_tar(("a.png", b"x")), "holds 1 files"),
        (_tar(("a.png", b"x"), ("b.json", facts)), "not the picture and the facts of one item"),
        (_tar((f"{key}.json", facts), (f"{key}.png", b"x")), "not the picture and the facts"),
        (_tar(("a.png", b"x"), ("a.json", facts)), "says that its key is"),
        (link.getvalue(), "a.png is no plain file"),
    ]:
        with pytest.raises(ValueError, match=words):
            unpack_shard(data, "suite-000000.tar")
