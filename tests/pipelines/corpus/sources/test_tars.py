"""What is in a tar, found without trusting it."""

from __future__ import annotations

import struct
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.corpus.samples import BadSampleError
from pipelines.corpus.sources.tars import Group, Survey, content, evidence, lost, pictures_of, split, survey
from tests.pipelines.corpus.formats import Member, write_members


def members(*names: str) -> list[Member]:
    return [Member(name, name.encode() * 40) for name in names]


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("a.jpg", "a", "jpg"),
        ("x.y/a.seg.PNG", "x.y/a", "seg.png"),
        ("README", "README", ""),
        ("./a.jpg", "./a", "jpg"),
        ("x/.hidden", "x/", "hidden"),
    ],
)
def test_a_key_ends_at_the_first_dot_of_the_file_name(name: str, key: str, extension: str) -> None:
    assert split(name) == (key, extension)


def test_contents_are_cut_out_by_their_places(tmp_path: Path) -> None:
    long = "deep/" * 30 + "name.jpg"
    write_members(tmp_path / "a.tar", members("a.jpg", "a.txt", "b.cls", "b.jpg", long))
    found = survey(str(tmp_path / "a.tar"))
    assert ([group.key for group in found.groups], found.end) == (["a", "b", long[:-4]], "")
    with (tmp_path / "a.tar").open("rb") as stream:
        first = content(stream, found.groups[0], 1000, 1)
        assert (first.images, first.texts, first.listed) == ((b"a.jpg" * 40,), {"txt": b"a.txt" * 40}, False)
        assert content(stream, found.groups[1], 10, 1).images == ((b"b.jpg" * 40)[:11],)
        assert evidence(stream, found.groups[1], 1000) == {"cls": b"b.cls" * 40, "jpg": b"b.jpg" * 40}
        assert evidence(stream, found.groups[1], 10) == {}
        assert content(stream, found.groups[2], 10_000, 1).images == (long.encode() * 40,)


@pytest.mark.parametrize(
    ("names", "keys", "bad"),
    [
        ("a.jpg b.jpg b.txt a.txt", "ab", {}),
        ("a.jpg a.txt b.jpg a.jpg a.json", "aba", {2: "duplicate_key"}),
        ("a.jpg a.jpg a.txt", "aa", {1: "duplicate_key"}),
        ("a.jpg a.txt a.jpg a.txt a.jpg a.txt", "aaa", {1: "duplicate_key", 2: "duplicate_key"}),
    ],
)
def test_what_stands_apart_is_gathered_unless_it_repeats(
    tmp_path: Path, names: str, keys: str, bad: dict[int, str]
) -> None:
    write_members(tmp_path / "a.tar", members(*names.split()))
    groups = survey(str(tmp_path / "a.tar")).groups
    assert "".join(group.key for group in groups) == keys
    assert {place: group.reason for place, group in enumerate(groups) if group.reason} == bad
    assert sum(len(group.members) for group in groups) == len(names.split())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.integers(0, 10_000))
def test_a_cut_anywhere_loses_only_what_stands_behind_it(tmp_path: Path, place: int) -> None:
    whole = tmp_path / "whole.tar"
    write_members(whole, members("a.jpg", "a.txt", "b.jpg", "b.txt", "c.jpg", "c.txt"))
    data = whole.read_bytes()
    at = place % (6 * 1024 + 1)
    (tmp_path / "cut.tar").write_bytes(data[:at])
    found = survey(str(tmp_path / "cut.tar"))
    complete = [group.key for group in found.groups if len(group.members) == 2 and not group.reason]
    assert complete == ["a", "b", "c"][: at // 2048 + (at % 2048 >= 1024 + 512 + 200)]
    assert found.end
    reported = [group for group in found.groups if group.reason == "damaged_file"]
    assert len(reported) + len(list(lost(found, None))) == 1


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, bytes(700), b"\x80\x04\x95" * 300])
def test_what_is_no_tar_ends_badly(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    found = survey(str(tmp_path / "a.tar"))
    assert found.groups == []
    assert (found.end == "") == (data == bytes(700))


def test_a_header_that_leads_backwards_ends_the_tar(tmp_path: Path) -> None:
    write_members(tmp_path / "a.tar", members("a.jpg", "b.jpg"))
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[1024 + 124 : 1024 + 136] = b"\xff" * 4 + struct.pack(">q", -2048)
    data[1024 + 148 : 1024 + 156] = b" " * 8
    total = sum(data[1024 : 1024 + 512])
    data[1024 + 148 : 1024 + 156] = b"%06o\0 " % total
    (tmp_path / "a.tar").write_bytes(data)
    found = survey(str(tmp_path / "a.tar"))
    assert [group.key for group in found.groups] == ["a"]
    assert "leads backwards" in found.end


def test_folders_are_no_samples(tmp_path: Path) -> None:
    def folder(header: tarfile.TarInfo) -> None:
        header.type, header.size = tarfile.DIRTYPE, 0

    write_members(tmp_path / "a.tar", [Member("x", b"", folder), *members("x/a.jpg")])
    assert [group.key for group in survey(str(tmp_path / "a.tar")).groups] == ["x/a"]


def test_a_tar_ends_where_headers_chain_for_ever(tmp_path: Path) -> None:
    def long_name(header: tarfile.TarInfo) -> None:
        header.type = tarfile.GNUTYPE_LONGNAME

    chain = [Member("@", b"name\0", long_name)] * 2000
    write_members(tmp_path / "a.tar", [*members("a.jpg", "a.txt"), *chain, *members("b.jpg", "b.txt")])
    found = survey(str(tmp_path / "a.tar"))
    assert [(group.key, group.reason) for group in found.groups] == [("a", "")]
    assert found.end.startswith("the tar is damaged: maximum recursion depth")
    assert [(group.key, group.reason) for group in lost(found, None)] == [("", "damaged_file")]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("jpg txt", ["jpg"]),
        ("png jpg txt", ["jpg"]),
        ("txt", []),
        (
            "2.jpg 10.jpg 9.jpg 8.png 7.jpg 6.jpg 5.jpg 4.jpg 3.jpg 1.webp",
            [
                *("1.webp", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "6.jpg", "7.jpg", "8.png", "9.jpg", "10.jpg"),
            ],
        ),
        ("0.jpg 1.jpg json", ["0.jpg", "1.jpg"]),
        ("001.jpg 000.jpeg", ["000.jpeg", "001.jpg"]),
        ("1.jpg jpg 2.png", ["jpg", "1.jpg", "2.png"]),
        ("jpg mask.png seg.0.jpg 1.json", ["jpg"]),
        ("0.gif 1.jpg", ["0.gif", "1.jpg"]),
    ],
)
def test_pictures_are_the_plain_one_and_the_numbered_ones(names: str, expected: list[str]) -> None:
    assert pictures_of(names.split()) == expected


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("0.jpg 2.jpg", "missing_image"),
        ("2.jpg 3.jpg", "missing_image"),
        ("jpg 2.jpg", "missing_image"),
        ("jpg 0.jpg", "missing_image"),
        ("0.jpg 0.png 1.jpg", "bad_record"),
        ("1.jpg 01.jpg", "bad_record"),
    ],
)
def test_numbers_with_gaps_or_twice_are_named(names: str, reason: str) -> None:
    with pytest.raises(BadSampleError) as caught:
        pictures_of(names.split())
    assert caught.value.reason == reason


def test_too_many_pictures_are_refused_before_any_is_read(tmp_path: Path) -> None:
    write_members(tmp_path / "a.tar", members("a.0.jpg", "a.1.jpg", "a.2.jpg"))
    (group,) = survey(str(tmp_path / "a.tar")).groups
    with (tmp_path / "a.tar").open("rb") as stream:
        with pytest.raises(BadSampleError, match="3 images, the limit is 2"):
            content(stream, group, 1000, 2)
        assert stream.tell() == 0
        assert content(stream, group, 1000, 3).listed


def test_what_was_promised_and_is_not_there_is_counted() -> None:
    groups = [Group("a"), Group("b", reason="damaged_file")]
    assert len(list(lost(Survey(groups, "cut"), 5))) == 3
    assert len(list(lost(Survey(groups, "cut"), None))) == 0
    assert len(list(lost(Survey(groups[:1], "cut"), None))) == 1
    assert list(lost(Survey(groups[:1]), 5)) == []
