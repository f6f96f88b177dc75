"""Tars of other people: what they hold and where, found without trusting a name and without reading a content.

Members of a key belong together where they stand together. A key that comes again is either the rest of its sample,
which is then gathered at its first place, or, where it repeats an extension, a second sample of the same name.

A sample has one picture, `<key>.jpg`, or several: `<key>.0.jpg`, `<key>.1.png` and so on, counted from 0 or 1 without a
gap; `<key>.jpg` may stand for the first of them, and the numbers then go on with 1. Pictures with words in front of the
extension, such as `<key>.mask.png`, are not the sample's.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import BinaryIO

from cluster import storage
from pipelines.corpus.samples import BadSampleError, Evidence, Fault, Origin, Raw, check_count
from pipelines.corpus.sources.base import check_path
from pipelines.corpus.sources.conversations import MAX_TEXT_BYTES, TEXT_EXTENSIONS

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
ALIEN_IMAGES = ("gif", "bmp", "tif", "tiff")
"""Pictures that we do not take, but that are pictures: they are put aside, not overlooked."""
PICTURES = (*IMAGE_EXTENSIONS, *ALIEN_IMAGES)
_PYTHON = ("pkl", "pickle", "pk", "p", "dill", "joblib", "pt", "pth", "ckpt", "bin", "py", "pyc", "pyo", "pyd")
_PROGRAMS = ("so", "dll", "dylib", "exe", "sh", "bat", "jar", "class")
PICKLED = frozenset((*_PYTHON, *_PROGRAMS))
"""Extensions whose content runs, or whose usual readers run it."""
_MAX_EVIDENCE = 64 * 1024 * 1024
"""Bytes of one sample that are put aside, unless a single member may be larger."""
_NUMBERED = re.compile(rf"([0-9]{{1,4}})\.(?:{'|'.join(PICTURES)})")


@dataclass
class Group:
    """One sample of a tar: `(offset, bytes)` of its members by extension, and what forbids to use it."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    reason: str = ""
    detail: str = ""

    def forbid(self, reason: str, detail: str) -> None:
        """Put the sample aside; the first reason stays."""
        if not self.reason:
            self.reason, self.detail = reason, detail

    def require_good(self) -> None:
        """Raise BadSampleError if something forbids to use the sample."""
        if self.reason:
            raise BadSampleError(self.reason, self.detail)


@dataclass(frozen=True, kw_only=True)
class Content:
    """The members of a sample that we read. `listed` is true where numbers say that there may be several images."""

    images: tuple[bytes, ...]
    texts: dict[str, bytes]
    listed: bool


@dataclass(frozen=True)
class Survey:
    """All samples of a tar in the order of their first members, and how it ended: empty where it ended well."""

    groups: list[Group]
    end: str = ""


def survey(uri: str) -> Survey:
    """Go through the headers of a tar; a tar that is cut short yields what stands before the cut.

    Raises:
        FileNotFoundError: if there is no such tar.
        StorageError: if the storage fails.
    """
    runs: list[Group] = []
    with storage.open_read(uri) as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        end = _walk(stream, size, runs)
    return Survey(_gathered(runs), end)


def raw_or_fault(
    stream: BinaryIO, group: Group, limits: tuple[int, int], origin: Origin, make: Callable[[Content], Raw]
) -> Raw | Fault:
    """What `make` makes of a sample's content, or why it is put aside, with all its members as evidence.

    Args:
        stream: of the tar.
        group: as it was surveyed.
        limits: bytes of the largest image that is read, and most images of one sample.
        origin: of the sample.
        make: may raise BadSampleError.
    """
    try:
        group.require_good()
        return make(content(stream, group, *limits))
    except BadSampleError as bad:
        held = evidence(stream, group, limits[0])
        return Fault(reason=bad.reason, origin=origin, detail=bad.detail, evidence=held)


def content(stream: BinaryIO, group: Group, max_bytes: int, max_images: int) -> Content:
    """The members of a sample that we read, each at most one byte over its limit.

    Raises:
        BadSampleError: `too_many_images`, before any is read, or what `pictures_of` finds.
    """
    pictures = pictures_of(group.members)
    check_count(len(pictures), max_images)

    def part(extension: str, limit: int) -> bytes:
        offset, size = group.members[extension]
        stream.seek(offset)
        return stream.read(min(size, limit + 1))

    return Content(
        images=tuple(part(extension, max_bytes) for extension in pictures),
        texts={name: part(name, MAX_TEXT_BYTES) for name in TEXT_EXTENSIONS if name in group.members},
        listed=any(extension not in PICTURES for extension in pictures),
    )


def evidence(stream: BinaryIO, group: Group, max_bytes: int) -> Evidence:
    """Every member of a sample as it stands, for the quarantine.

    Members over the limit are left out, and those for which all before them leave no room: a sample is held in memory.
    """
    found, room = {}, max(max_bytes, _MAX_EVIDENCE)
    for extension, (offset, size) in group.members.items():
        if size <= min(max_bytes, room):
            stream.seek(offset)
            found[extension or "member"] = stream.read(size)
            room -= size
    return found


def pictures_of(members: Iterable[str]) -> list[str]:
    """The extensions of the pictures among a sample's, in order.

    Raises:
        BadSampleError: `missing_image` where their numbers have a gap, `bad_record` where one comes twice.
    """
    there = set(members)
    plain = [extension for extension in PICTURES if extension in there][:1]
    numbered = sorted((int(found[1]), name) for name in there if (found := _NUMBERED.fullmatch(name)))
    numbers = [number for number, _ in numbered]
    first = min(1, numbers[0]) if numbers and not plain else 1
    if len(set(numbers)) < len(numbers):
        raise BadSampleError("bad_record", f"two images have the same number: {numbers}")
    if numbers != list(range(first, first + len(numbers))):
        raise BadSampleError("missing_image", f"the images are numbered {numbers}, expected no gap from {first} on")
    return [*plain, *(name for _, name in numbered)]


def _walk(stream: BinaryIO, size: int, runs: list[Group]) -> str:
    """Fill `runs` with what stands together; returns how the tar ended."""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if tar.offset <= member.offset or member.size < 0:
                    return "the tar is damaged: a header leads backwards"
                _take(member, size, runs)
                tar.members.clear()  # type: ignore[attr-defined] # it keeps every header otherwise
                if runs and runs[-1].reason == "damaged_file":
                    return runs[-1].detail
            stream.seek(tar.offset)
            ended = stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except OSError:  # the storage's trouble; it may be a ValueError too
        raise
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        # tarfile calls itself for every header that only says more of the next one; thousands in a chain are an attack
        return f"the tar is damaged: {error}"
    return "" if ended else "the tar has no end, so there may have been more"


def _take(member: tarfile.TarInfo, size: int, runs: list[Group]) -> None:
    if member.isdir():
        return
    key, extension = split(member.name)
    if not runs or runs[-1].key != key or extension in runs[-1].members:
        runs.append(Group(key))
    group = runs[-1]
    group.members[extension] = (member.offset_data, 0 if not member.isreg() else member.size)
    try:
        _check(member, extension, size)
    except BadSampleError as bad:
        if bad.reason in {"unsafe_member", "damaged_file"}:
            del group.members[extension]
        group.forbid(bad.reason, bad.detail)


def _check(member: tarfile.TarInfo, extension: str, size: int) -> None:
    check_path(member.name)
    if not member.isreg() or member.issparse():
        raise BadSampleError("unsafe_member", f"{member.name!r} is a link, a device or a sparse file")
    if extension.rpartition(".")[2] in PICKLED:
        raise BadSampleError("pickled_member", f"{member.name!r} would be run by its usual readers")
    if member.offset_data + member.size > size:
        raise BadSampleError("damaged_file", f"the tar is cut inside {member.name!r}")


def split(name: str) -> tuple[str, str]:
    """Key and extension: the path up to the first dot of the file name, and the rest in lower case."""
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    return name[: len(name) - len(path.name)] + stem, extension.lower()


def _gathered(runs: list[Group]) -> list[Group]:
    """Runs of one key as one sample, unless they repeat an extension."""
    first: dict[str, Group] = {}
    groups = []
    for run in runs:
        known = first.setdefault(run.key, run)
        if known is run:
            groups.append(run)
        elif known.members.keys() & run.members.keys():
            run.forbid("duplicate_key", f"the key {run.key!r} is there before")
            groups.append(run)
        else:
            known.members |= run.members
            if run.reason:
                known.forbid(run.reason, run.detail)
    return groups


def lost(survey_of: Survey, promised: int | None) -> Iterator[Group]:
    """What a damaged tar no longer holds: as many samples as were promised, or one for an end that is unknown."""
    if not survey_of.end:
        return
    cut_inside = bool(survey_of.groups) and survey_of.groups[-1].reason == "damaged_file"
    missing = int(not cut_inside) if promised is None else max(0, promised - len(survey_of.groups))
    for _ in range(missing):
        yield Group("", reason="damaged_file", detail=survey_of.end)
