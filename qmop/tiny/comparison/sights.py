"""What frozen towers make of pictures and questions, computed once, kept in files that all runs map into memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qmop.encoders import QueryEncoder
from qmop.features import Query, VisualFeatures
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.tiny.pretraining.world import normalise
from qmop.views import View, as_features, look

_BATCH = 100


class Sights:
    """The features of many pictures.

    Args:
        folder: of one set of pictures and one tower.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: dict[Path, np.ndarray] = {}

    def see(
        self,
        model: QMoPForConditionalGeneration,
        views: Sequence[View],
        show: Callable[[Tensor], Tensor],
        pictures: Callable[[], np.ndarray],
        say: Callable[[str], None],
    ) -> None:
        """Compute what some views read and is not there yet, in one pass of the tower.

        Args:
            model: whose towers look, frozen.
            views: of methods that show the tower the same pictures.
            show: what these methods do to pictures before the tower sees them.
            pictures: gives `(n, 96, 96, 3)` uint8; asked only where something is missing.
            say: told about progress.
        """
        paths = {name: self._path(view, name) for view in views for name in view.names.values()}
        if not (paths := {name: path for name, path in paths.items() if not path.is_file()}):
            return
        pixels, drafts = pictures(), dict[str, np.memmap]()
        for first in range(0, len(pixels), _BATCH):
            rows = slice(first, first + _BATCH)
            with torch.no_grad():
                shown = show(normalise(pixels[rows]))
                found = look(model.model.vision_tower, shown, views, model.model.query_encoder)
            for name, path in paths.items():
                values = found[name].half().numpy()
                if name not in drafts:
                    drafts[name] = _array(_draft(path), (len(pixels), *values.shape[1:]))
                drafts[name][rows] = values
            if first % (10 * _BATCH) == 0:
                say(f"tower: picture {first} of {len(pixels)}")
        for name, draft in drafts.items():
            draft.flush()
            _draft(paths[name]).replace(paths[name])

    def rows(self, view: View, rows: np.ndarray | slice) -> VisualFeatures:
        """The features of some pictures, in single precision."""
        found = {name: self._read(view, name, rows) for name in view.names.values()}
        side = int(found[view.names["patches_BNC"]].shape[1] ** 0.5)
        return as_features(view, found, (side, side))

    def _read(self, view: View, name: str, rows: np.ndarray | slice) -> Tensor:
        path = self._path(view, name)
        if path not in self._opened:
            self._opened[path] = np.load(path, mmap_mode="r")
        return torch.from_numpy(np.array(self._opened[path][rows])).float()

    def _path(self, view: View, name: str) -> Path:
        """One file for each thing read, in a folder for each way to show the pictures."""
        shown = hashlib.sha256(view.shown.encode()).hexdigest()[:12] if view.shown else "plain"
        return self._folder / shown / f"{name.replace(',', '_')}.npy"


def _draft(path: Path) -> Path:
    """Where this process writes a file that is not finished; another one may be writing the same."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def _array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    path.parent.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)


class Questions:
    """Questions as the text tower reads them: each different one once.

    Args:
        asked: ids of every question, without begin and end tokens; equal ones may come again.
        encoder: the frozen text tower.
        ends: ids of its begin, end and padding token.
    """

    def __init__(self, asked: Iterable[np.ndarray], encoder: QueryEncoder, ends: tuple[int, int, int]) -> None:
        self._place: dict[bytes, int] = {}
        different: list[np.ndarray] = []
        for ids in asked:
            if (key := ids.tobytes()) not in self._place:
                self._place[key] = len(different)
                different.append(ids)
        self._query = _encode(different, encoder, ends)

    def rows(self, asked: Sequence[np.ndarray]) -> Query:
        """The queries of some questions."""
        return self._query.rows(torch.tensor([self._place[ids.tobytes()] for ids in asked]))


@torch.no_grad()
def _encode(asked: Sequence[np.ndarray], encoder: QueryEncoder, ends: tuple[int, int, int]) -> Query:
    begin, end, fill = ends
    longest = max(map(len, asked)) + 2
    ids = torch.full((len(asked), longest), fill)
    mask = torch.zeros_like(ids)
    for row, words in enumerate(asked):
        ids[row, : len(words) + 2] = torch.tensor([begin, *words.tolist(), end])
        mask[row, : len(words) + 2] = 1
    parts = [encoder(*part, last=True) for part in zip(ids.split(_BATCH), mask.split(_BATCH), strict=True)]
    return Query(
        text_BE=torch.cat([part.text_BE for part in parts]),
        eos_BC=torch.cat([part.need("eos_BC") for part in parts]),
        last_BE=torch.cat([part.need("last_BE") for part in parts]),
    )
