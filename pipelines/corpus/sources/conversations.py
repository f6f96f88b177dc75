"""Texts in the forms that people keep them in, turned into messages: captions, LLaVA turns, chat messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipelines.corpus.samples import IMAGE_TOKEN, BadSampleError, Message

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
TEXT_FIELDS = ("conversations", "messages", "caption", "text")
"""Where a record may keep its texts, the most telling first."""
TEXT_EXTENSIONS = ("json", "txt", "caption")
"""Files beside an image that may hold its texts, in this order."""
MAX_TEXT_BYTES = 1_000_000


def kind(value: object) -> str:
    """What JSON calls a value."""
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def messages_of(value: object, prompt: str) -> list[Message]:
    """A caption, a list of LLaVA turns or a list of chat messages as our messages; empty where there is nothing.

    All images stand before whatever question is asked, in their order, so their tokens are dropped.

    Raises:
        BadSampleError: `no_caption` or `bad_record`.
    """
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str):
        return [{"role": "user", "text": prompt}, {"role": "assistant", "text": value.strip()}]
    if not isinstance(value, list):
        raise BadSampleError("bad_record", f"the texts are a JSON {kind(value)}, expected a text or a list of turns")
    return [_message(turn) for turn in value]


def image_places(value: object) -> int:
    """How many places for images turns hold; a caption holds none."""
    return sum(_words(turn).count(IMAGE_TOKEN) for turn in value) if isinstance(value, list) else 0


def check_places(value: object, images: int, *, listed: bool) -> None:
    """Require a place for each image, or none at all.

    Args:
        value: the texts.
        images: how many there are.
        listed: whether they came as a list; a single one that came as such may be spoken of again and again.

    Raises:
        BadSampleError: `bad_record`, or `missing_image` where the texts have places and there is no image.
    """
    places = image_places(value)
    if places and not images:
        raise BadSampleError("missing_image", f"the text has {IMAGE_TOKEN} but the record has no image")
    if places and places != images and (listed or images > 1):
        raise BadSampleError(
            "bad_record", f"the turns have {places} {IMAGE_TOKEN} for {images} images, expected one for each or none"
        )


def first_text(record: Mapping[str, Any]) -> object:
    """The first field of a record that holds texts, or None."""
    return next((record[name] for name in TEXT_FIELDS if record.get(name) not in (None, "", [])), None)


def from_files(files: Mapping[str, bytes], listed: object, prompt: str) -> tuple[list[Message], dict[str, Any]]:
    """The messages out of the files beside an image, by extension, or out of a table; and the JSON file's record.

    Raises:
        BadSampleError: `no_caption`, `too_large` or `bad_record`.
    """
    if any(len(data) > MAX_TEXT_BYTES for data in files.values()):
        raise BadSampleError("too_large", f"a text of more than {MAX_TEXT_BYTES:,} bytes")
    try:
        record = json.loads(files.get("json", b"{}"))
        texts = [files[name].decode() for name in TEXT_EXTENSIONS[1:] if name in files]
    except (ValueError, RecursionError) as error:
        raise BadSampleError("bad_record", f"json or txt cannot be read: {error}") from error
    record = record if isinstance(record, dict) else {}
    for value in (first_text(record), *texts, listed):
        if messages := messages_of(value, prompt):
            return messages, record
    raise BadSampleError("no_caption", "no json, txt, caption or table holds a text")


def _message(turn: object) -> Message:
    """A LLaVA turn or a chat message in our words."""
    said = (turn.get("from") or turn.get("role")) if isinstance(turn, dict) else None
    if not isinstance(turn, dict) or not isinstance(said, str) or said not in ROLES:
        raise BadSampleError("bad_record", f"a turn is not from one of {', '.join(ROLES)}")
    if _value(turn) is None:
        raise BadSampleError("no_caption", f"a turn from {said} has no text")
    return {"role": ROLES[said], "text": _words(turn).replace(IMAGE_TOKEN, "").strip()}


def _value(turn: dict[str, Any]) -> object:
    """What a turn says: LLaVA calls it value, chat messages content, our own records text."""
    return next((turn[name] for name in ("value", "content", "text") if turn.get(name) is not None), None)


def _words(turn: object) -> str:
    """The words of a turn; a chat message may hold them in pieces."""
    value = _value(turn) if isinstance(turn, dict) else None
    if isinstance(value, str) or value is None:
        return value or ""
    if not isinstance(value, list) or not all(isinstance(piece, dict) for piece in value):
        raise BadSampleError("bad_record", f"the text of a turn is a JSON {kind(value)}, expected a text or its pieces")
    if any(piece.get("type") not in ("text", "image") for piece in value):
        raise BadSampleError("bad_record", "a piece of a message is neither text nor image")
    return " ".join(IMAGE_TOKEN if piece["type"] == "image" else str(piece.get("text") or "") for piece in value)
