"""Items to WebDataset tar bytes and back; the only place of the benchmark that knows tar."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

from qmop.vtcbench.items import Item
from qmop.vtcbench.rendered import RenderedItem

_FACTS = "json"
_MAGIC = {"png": b"\x89PNG", "jpg": b"\xff\xd8", "webp": b"RIFF"}


def picture_kind(image: bytes) -> str:
    """The file name's end that fits a picture's first bytes: `png`, `jpg` or `webp`.

    Raises:
        ValueError: if it is none of these.
    """
    for kind, magic in _MAGIC.items():
        if image.startswith(magic):
            return kind
    raise ValueError(f"a picture begins with {image[:8]!r}, expected PNG, JPEG or WebP; convert it first")


def pack_shard(items: Sequence[RenderedItem]) -> bytes:
    """A USTAR archive of `<key>.png` (or `.jpg`, `.webp`) and `<key>.json` per item; equal items give equal bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for rendered in items:
            _add(tar, f"{rendered.item.key}.{picture_kind(rendered.image)}", rendered.image)
            _add(tar, f"{rendered.item.key}.{_FACTS}", rendered.item.to_json())
    return buffer.getvalue()


def unpack_shard(data: bytes, name: str) -> list[RenderedItem]:
    """The items of an archive, in its order.

    Args:
        data: the archive.
        name: what to call it in an error.

    Raises:
        ValueError: if the archive is damaged, or holds anything but one picture and one JSON object per key.
    """
    members = _members(data, name)
    items = []
    for picture, facts in zip(members[::2], members[1::2], strict=True):
        key, _, kind = picture[0].rpartition(".")
        if kind not in _MAGIC or facts[0] != f"{key}.{_FACTS}":
            raise ValueError(f"shard {name}: {picture[0]} and {facts[0]} are not the picture and the facts of one item")
        item = Item.from_json(facts[1])
        if item.key != key:
            raise ValueError(f"shard {name}: {facts[0]} says that its key is {item.key!r}")
        items.append(RenderedItem(item=item, image=picture[1]))
    return items


def _members(data: bytes, name: str) -> list[tuple[str, bytes]]:
    members = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise ValueError(f"shard {name}: {member.name} is no plain file")
                members.append((member.name, content.read()))
    except tarfile.TarError as error:
        raise ValueError(f"shard {name} is no readable tar archive: {error}") from error
    if len(members) % 2:
        raise ValueError(f"shard {name} holds {len(members)} files, expected a picture and a JSON object per item")
    return members


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # its defaults are time 0, owner 0 and mode 0644
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
