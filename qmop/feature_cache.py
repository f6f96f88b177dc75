"""Pictures seen before: tower features by image, compressed tokens by image, question, method and budget.

For inference only: wherever gradients are recorded or the projector trains, everything is computed. What comes out of
the cache is what was put in, bit for bit; but since only the missing images of a batch run through the tower, a batch
has another size there than without a cache, and on most devices the last bits of a matrix product depend on that
(differences of 1e-6 in single precision).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from qmop.features import CompressedTokens, VisualFeatures
from qmop.identities import image_digests

Out = TypeVar("Out", VisualFeatures, CompressedTokens)


@dataclass(frozen=True)
class Counters:
    """What a cache has done so far; `hits + misses` is the number of look-ups, an image twice in a batch counts twice.

    Attributes:
        hits: look-ups that found something.
        misses: look-ups that did not.
        evicted: entries that made room for others.
        refused: entries larger than the whole cache, which were not kept.
        entries: held now.
        held_bytes: held now, tensors only.
    """

    hits: int = 0
    misses: int = 0
    evicted: int = 0
    refused: int = 0
    entries: int = 0
    held_bytes: int = 0


class FeatureCache:
    """The least recently used entries go when a budget of bytes is exceeded. Safe to share between threads and models.

    Copies of a cache are the cache itself, so that copies of a model share it.

    Args:
        max_bytes: the budget.
        device: where entries are kept; where they were computed when absent.

    Raises:
        ValueError: if the budget is not positive.
    """

    def __init__(self, max_bytes: int, device: torch.device | str | None = None) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}: choose a positive number, or use no cache")
        self.max_bytes, self.device = max_bytes, device
        self._entries: OrderedDict[Hashable, ModelOutput] = OrderedDict()
        self._counters, self._lock = Counters(), Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureCache:
        return self

    @property
    def counters(self) -> Counters:
        """What the cache has done so far, at one moment."""
        with self._lock:
            return self._counters

    def get(self, key: Hashable) -> Any | None:
        """An entry, which counts as used now."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            self._count(hits=found is not None, misses=found is None)
            return found

    def put(self, key: Hashable, value: ModelOutput) -> None:
        """Keep an entry; one of the same key is replaced."""
        size = byte_size(value)
        with self._lock:
            if size > self.max_bytes:
                self._count(refused=1)
                return
            self._drop(key)
            while self._counters.held_bytes + size > self.max_bytes:
                self._drop(next(iter(self._entries)))
                self._count(evicted=1)
            self._entries[key] = value
            self._count(entries=1, held_bytes=size)

    def clear(self) -> None:
        """Forget every entry; the counters of hits, misses and evictions go on."""
        with self._lock:
            self._entries.clear()
            self._counters = replace(self._counters, entries=0, held_bytes=0)

    def _drop(self, key: Hashable) -> None:
        if (old := self._entries.pop(key, None)) is not None:
            self._count(entries=-1, held_bytes=-byte_size(old))

    def _count(self, **more: int) -> None:
        sums = {name: getattr(self._counters, name) + by for name, by in more.items()}
        self._counters = replace(self._counters, **sums)


class CachedFeatures:
    """Batches put together from images seen before and images computed now.

    Args:
        cache: where images are remembered; nothing is without one.
        projector: what compresses; in training mode it may draw noise, so nothing is remembered then.
    """

    def __init__(self, cache: FeatureCache | None, projector: nn.Module | None = None) -> None:
        self.cache, self.projector = cache, projector

    @property
    def active(self) -> bool:
        """Whether anything would be remembered: not without a cache, nor while gradients are recorded or it trains."""
        training = self.projector is not None and self.projector.training
        return self.cache is not None and not torch.is_grad_enabled() and not training

    def features(
        self,
        pixels_BCHW: Tensor,
        compute: Callable[[Tensor], VisualFeatures],
        *,
        owner: Hashable,
        digests: Sequence[bytes] | None = None,
    ) -> VisualFeatures:
        """Features of each image; only those of images not seen before are computed.

        Args:
            pixels_BCHW: what the tower is shown.
            compute: some of the pixels to their features.
            owner: what else the features depend on: `module_identity` of the tower, layers, what is read.
            digests: of the images, where they are known already.
        """
        if not self.active or not len(pixels_BCHW):
            return compute(pixels_BCHW)
        keys = [("features", owner, digest) for digest in digests or image_digests(pixels_BCHW)]
        device = pixels_BCHW.device
        return self._batch(keys, lambda places: compute(pixels_BCHW[places.to(device)]), device)

    def compressed(
        self,
        digests: Sequence[Hashable],
        compute: Callable[[Tensor], CompressedTokens],
        *,
        owner: Hashable,
        device: torch.device,
    ) -> CompressedTokens:
        """Tokens of each image; only those of images not seen before, with this question, are computed.

        Args:
            digests: of each image, with that of its question where the method reads one.
            compute: places in the batch, int64 and ascending, to the tokens of these images.
            owner: what else the tokens depend on: the features' owner, connector, method, options and budget.
            device: of the result.
        """
        if not self.active or not digests:
            return compute(torch.arange(len(digests)))
        return self._batch([("compressed", owner, digest) for digest in digests], compute, device)

    def _batch(self, keys: Sequence[Hashable], compute: Callable[[Tensor], Out], device: torch.device) -> Out:
        assert self.cache is not None, "only an active cache puts batches together"
        found = {key: entry for key in keys if (entry := self.cache.get(key)) is not None}
        first = {key: place for place, key in reversed(list(enumerate(keys))) if key not in found}
        missing = sorted(first.values())
        if missing:
            computed = compute(torch.tensor(missing))
            for row, place in enumerate(missing):
                found[keys[place]] = entry = _row(computed, row, self.cache.device)
                self.cache.put(keys[place], entry)
        return _joined([found[key] for key in keys], device)


def _row(output: Out, row: int, device: torch.device | str | None) -> Out:
    """One image of a batch, in memory of its own."""
    values: dict[str, Any] = {
        name: value[row : row + 1].to(device or value.device, copy=True) if isinstance(value, Tensor) else value
        for name, value in output.items()
    }
    return type(output)(**values)


def _joined(rows: Sequence[Out], device: torch.device) -> Out:
    """Single images as a batch; tokens are padded to the longest, as the methods do."""
    first = rows[0]
    merged: dict[str, Any] = {}
    if isinstance(first, CompressedTokens):
        longest = max(row.tokens_BMC.shape[1] for row in rows)
        rows = [_padded(row, longest) for row in rows] if any(_needs_mask(row, longest) for row in rows) else rows
    for name in rows[0]:
        values = [row[name] for row in rows]
        merged[name] = torch.cat(values).to(device) if isinstance(values[0], Tensor) else values[0]
    return type(first)(**merged)


def _needs_mask(row: CompressedTokens, longest: int) -> bool:
    return row.mask_BM is not None or row.tokens_BMC.shape[1] < longest


def _padded(row: CompressedTokens, longest: int) -> CompressedTokens:
    """One image's tokens padded on the right, with a mask."""
    tokens = row.tokens_BMC
    missing = longest - tokens.shape[1]
    mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if row.mask_BM is None else row.mask_BM
    kept = None if row.kept_BM is None else F.pad(row.kept_BM, (0, missing), value=-1)
    changed = {"tokens_BMC": F.pad(tokens, (0, 0, 0, missing)), "mask_BM": F.pad(mask, (0, missing)), "kept_BM": kept}
    return CompressedTokens(**{**row, **changed})


def byte_size(output: ModelOutput) -> int:
    """Bytes of the tensors of an output."""
    return sum(value.nbytes for value in output.values() if isinstance(value, Tensor))
