"""The forms that one sample takes on its way from a source into a shard."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

IMAGE_TOKEN = "<image>"  # noqa: S105 - a placeholder in a text, not a secret
REASONS = {
    "missing_image": "the record names an image that is not there, or speaks of one without naming it",
    "corrupt_image": "an image does not decode to its end",
    "unsupported_image": "an image is no JPEG, PNG or WebP",
    "too_large": "an image exceeds a limit on bytes, pixels or frames, or a text one on bytes",
    "too_narrow": "an image's long side is more than 50 times its short one",
    "too_many_images": "the record has more images than a sample may have",
    "unsafe_path": "a path leaves its folder, names another place or would run a program",
    "unsafe_member": "a tar holds a link, a device or a sparse file under this key",
    "pickled_member": "a tar holds a pickle or a program under this key, which nobody should open",
    "no_caption": "the record holds no text to learn",
    "bad_record": "the record does not have the documented form",
    "duplicate_key": "an earlier record of the same file or folder has this key",
    "unlisted": "the tar holds a sample that the table beside it does not list",
    "damaged_file": "the file that holds the sample is cut short or damaged",
    "duplicate": "an earlier sample has the same images and the same texts",
    "near_duplicate": "an earlier sample's picture looks the same",
    "not_downloaded": "img2dataset itself reports that the image was not obtained",
}
"""Every reason for quarantine, with its meaning."""
UNCOUNTED = frozenset({"not_downloaded", "duplicate", "near_duplicate"})
"""Reasons that the ceiling on bad samples leaves out: the source has accounted for them, or a recipe asks for them."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_IDENTITY = 48

Origin = dict[str, Any]
Message = dict[str, str]


Evidence = dict[str, bytes]
"""What a bad record consists of, still encoded, by what it is: image, record, text, or the name of a tar's member."""


class BadSampleError(Exception):
    """One sample cannot be used; carries a reason from `REASONS` and a detail for people."""

    def __init__(self, reason: str, detail: str) -> None:
        """Keep reason and detail apart, for the account and for people."""
        super().__init__(f"{reason}: {detail}")
        assert reason in REASONS, reason
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A sample that was put aside, and why. `position` is the record's own; -1 until it is known."""

    reason: str
    origin: Origin
    detail: str
    position: int = -1
    evidence: Evidence = field(default_factory=dict, repr=False)

    def account(self) -> dict[str, Any]:
        """All but the evidence."""
        return {"position": self.position, "reason": self.reason, "origin": self.origin, "detail": self.detail}

    def to_json(self) -> str:
        """One line of quarantine.jsonl, ASCII alone: a bad record may hold text that no encoding takes."""
        return json.dumps(self.account())


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A record as a source hands it out: texts and images in order, the images still unopened.

    `position` counts the source's records from 0; `identity` is the record's own name, unique or not.
    """

    position: int
    identity: str
    images: tuple[bytes, ...] = ()
    messages: list[Message]
    origin: Origin


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A validated sample: what one key of a shard holds.

    Attributes:
        key: unique in the corpus.
        images: encoded, in the order of the record.
        extensions: of the images: jpg, png or webp.
        record: see `record_of`.
    """

    key: str
    images: tuple[bytes, ...] = ()
    extensions: tuple[str, ...] = ()
    record: dict[str, Any]

    def members(self) -> list[tuple[str, bytes]]:
        """File names and contents, in the order that they stand in the shard.

        One image is `<key>.jpg`; several are `<key>.0.jpg`, `<key>.1.png` and so on.
        """
        text = json.dumps(self.record, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        numbers = [""] if len(self.images) == 1 else [f"{number}." for number in range(len(self.images))]
        names = [f"{self.key}.{number}{kind}" for number, kind in zip(numbers, self.extensions, strict=True)]
        return [*zip(names, self.images, strict=True), (f"{self.key}.json", text.encode())]


def sample_key(position: int, identity: str) -> str:
    """A key that is unique, sorts like the source and is safe as a file name: no dots, no slashes, ASCII alone."""
    name = _UNSAFE.sub("_", identity).strip("_")[:_LONGEST_IDENTITY]
    return f"{position:09d}-{name}" if name else f"{position:09d}"


def record_of(raw: Raw) -> dict[str, Any]:
    """The JSON that a shard keeps beside the images: the same whatever form the record came in.

    `image` says whether there is any, and `images` how many where there are several.
    """
    record = {"id": raw.identity, "messages": raw.messages, "image": bool(raw.images)}
    return record | {"images": len(raw.images)} if len(raw.images) > 1 else record


def check_count(images: int, most: int) -> None:
    """Refuse a sample with more images than the limit, best before any of them is read.

    Raises:
        BadSampleError: `too_many_images`.
    """
    if images > most:
        raise BadSampleError("too_many_images", f"{images} images, the limit is {most} (limits.max_images)")


def check_messages(messages: list[Message]) -> None:
    """Require turns that alternate from user to assistant and teach something.

    Raises:
        BadSampleError: `no_caption` where no assistant text is left, `bad_record` where the turns do not alternate.
    """
    roles = [message["role"] for message in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise BadSampleError("bad_record", f"turns are {', '.join(roles)}; expected user and assistant in turn")
    empty = [number for number, message in enumerate(messages) if number % 2 and not message["text"]]
    if empty or not messages:
        raise BadSampleError("no_caption", "the assistant's text is empty" if empty else "there are no turns")
