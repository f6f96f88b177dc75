"""What vision towers made of pictures, on local disk: written once, mapped into memory by all that read it.

A room holds what one tower made of pictures prepared in one way. It grows by files that never change: safetensors with
a row for each picture. When all rooms together exceed a budget of bytes, the files used longest ago go.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

logger = logging.getLogger(__name__)

_END, _DRAFT = ".safetensors", ".draft"


class TowerCache:
    """A folder of rooms.

    Args:
        folder: local; made if absent, for its owner alone.
        max_bytes: of all rooms.

    Raises:
        ValueError: if the folder belongs to somebody else, who could put anything into it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise ValueError(f"tower.folder {folder} belongs to another user: name one of your own")
        self.folder, self.max_bytes = folder, max_bytes
        self.complained = False
        """Whether it was said already that nothing can be written."""

    def room(self, key: str) -> Room:
        """The room of a tower and a way to prepare pictures."""
        return Room(self, self.folder / key)

    def make_room(self, more: int) -> bool:
        """Let go of old files until so many bytes fit in; False if they never will."""
        if more > self.max_bytes:
            return False
        files = sorted(self._files(), key=lambda pair: pair[1].st_mtime)
        held = sum(stat.st_size for _, stat in files)
        for path, stat in files:
            if held + more <= self.max_bytes:
                break
            path.unlink(missing_ok=True)  # who has it mapped keeps it
            held -= stat.st_size
        return True

    def _files(self) -> Iterable[tuple[Path, os.stat_result]]:
        for path in self.folder.glob(f"*/*{_END}"):
            try:
                yield path, path.stat()
            except FileNotFoundError:
                continue


class Room:
    """Rows by name and picture. A picture is known by its file's digest and, once prepared, by that of its pixels."""

    def __init__(self, cache: TowerCache, folder: Path) -> None:
        self._cache, self._folder = cache, folder
        self._opened: set[str] = set()
        self._pixels: dict[str, str] = {}
        self._rows: dict[str, dict[str, tuple[Tensor, int]]] = {}
        folder.mkdir(mode=0o700, exist_ok=True)

    def refresh(self) -> None:
        """Open what others have added."""
        for path in sorted(self._folder.glob(f"*{_END}")):
            if path.name not in self._opened:
                self._opened.add(path.name)
                self._open(path)

    def holds(self, image: str, names: Iterable[str]) -> bool:
        """Whether everything of these names is there for a picture's file."""
        rows = self._rows.get(self._pixels.get(image, ""), {})
        return all(name in rows for name in names)

    def row(self, pixels: str, names: Iterable[str]) -> dict[str, Tensor] | None:
        """One picture's rows, `(1, ...)` each; None if one is missing."""
        rows = self._rows.get(pixels, {})
        if any(name not in rows for name in names):
            return None
        return {name: rows[name][0][rows[name][1]].unsqueeze(0) for name in names}

    def add(self, images: Sequence[str], pixels: Sequence[str], tensors: dict[str, Tensor]) -> bool:
        """Keep the rows of some pictures; False if there is no room for so much, or they cannot be written.

        Args:
            images: digests of their files.
            pixels: digests of their pixels.
            tensors: by name, a row for each picture.
        """
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        if not self._cache.make_room(sum(tensor.nbytes for tensor in whole.values())):
            return False
        path = self._folder / f"{uuid.uuid4().hex}{_END}"
        draft = path.with_suffix(_DRAFT)
        try:
            save_file(whole, draft, {"images": json.dumps(list(images)), "pixels": json.dumps(list(pixels))})
            with draft.open("rb") as written:
                os.fsync(written.fileno())
            draft.replace(path)
        except (OSError, SafetensorError) as error:  # a full disk, say: the cache saves work and decides nothing
            if not self._cache.complained:
                self._cache.complained = True
                logger.warning("pictures are looked at without being remembered in %s: %s", self._folder, error)
            return False
        finally:
            draft.unlink(missing_ok=True)
        self.refresh()
        return True

    def _open(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as stored:
                facts = stored.metadata()
                images, pixels = json.loads(facts["images"]), json.loads(facts["pixels"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
            os.utime(path)
        except FileNotFoundError:  # it had to make room
            return
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError):
            path.unlink(missing_ok=True)
            return
        self._pixels |= dict(zip(images, pixels, strict=True))
        for place, digest in enumerate(pixels):
            known = self._rows.setdefault(digest, {})
            known |= {name: (tensor, place) for name, tensor in tensors.items() if name not in known}
