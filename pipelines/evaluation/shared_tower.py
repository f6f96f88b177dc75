"""One pass of the vision tower per picture, for all checkpoints and methods that have the same tower.

Before a shard's questions are put to a model, its pictures are looked up; those that are missing go through the tower
in the very batches in which they will be asked about, and everything that any method at hand reads is kept. The model
then finds its features where it looks for pictures seen before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from pipelines.corpus.images import decode_image
from pipelines.evaluation.suspicion import Suspicion, lost_device
from pipelines.evaluation.tower_cache import TowerCache
from qmop.feature_cache import FeatureCache
from qmop.identities import image_digests
from qmop.views import View, as_features, look, together
from qmop.vtcbench.rendered import RenderedItem

_FLUSH_BYTES = 128 * 1024 * 1024
_GRID = "grid"


class SharedTower(FeatureCache):
    """What a model takes for its cache of pictures seen before; the compressed tokens are not kept.

    Args:
        model: whose tower it is; reads from here from now on.
        processor: its processor.
        own: what its method reads.
        others: what the methods of other checkpoints read.
        cache: where features are kept.
    """

    def __init__(self, model: Any, processor: Any, own: View, others: Sequence[View], cache: TowerCache) -> None:
        super().__init__(max_bytes=cache.max_bytes)
        inner = model.model
        self._model, self._processor, self._encoder = model, processor, inner.query_encoder
        views = together(own, others)
        self._views = views if self._encoder is not None else tuple(view.without_text() for view in views)
        self.passed = 0
        """Pictures that went through the tower on this object's behalf."""
        projection = None if self._encoder is None else self._encoder.visual_projection
        shown = json.dumps([own.shown, processor.image_processor.to_dict()], sort_keys=True, default=str)
        self._room = cache.room(_digest(shown.encode(), weights_digest(inner.vision_tower).encode())[:32])
        self._text = "" if projection is None else weights_digest(projection)[:16]
        inner.feature_cache = self

    def prepare(self, batches: Sequence[Sequence[RenderedItem]], suspicion: Suspicion | None = None) -> None:
        """See that every picture's features are there; what cannot be read or passed is left to the question about it.

        Args:
            batches: as they will be asked.
            suspicion: hears of a device that is lost; one of its own when absent.

        Raises:
            WorkerError: if this process, and no picture, is to blame.
        """
        suspicion = suspicion or Suspicion()
        self._room.refresh()
        names = self._names(*self._views)
        images: list[str] = []
        pixels: list[str] = []
        parts: list[dict[str, Tensor]] = []
        taken: set[str] = set()
        for batch in batches:
            missing = {digest: r for r in batch if not self._room.holds(digest := _digest(r.image), names)}
            decoded = {d: picture for d, r in missing.items() if d not in taken and (picture := _picture(r.image))}
            if decoded:
                try:
                    found, seen = self._pass(list(decoded.values()))
                except Exception as error:  # noqa: BLE001 - whatever one picture makes of its batch
                    if lost_device(error):
                        suspicion.failed(error, [rendered.item.key for rendered in batch])
                    continue  # not remembered: asking finds out which picture it is
                images += decoded
                pixels += seen
                parts.append(found)
                taken |= decoded.keys()
            if parts and sum(tensor.nbytes for part in parts for tensor in part.values()) > _FLUSH_BYTES:
                self._keep(images, pixels, parts)
        self._keep(images, pixels, parts)

    def get(self, key: Hashable) -> Any | None:
        """A picture's features, by the digest of its pixels at the end of the key."""
        assert isinstance(key, tuple), "keys are those of CachedFeatures: kind, owner, digest"
        kind, _, digest = key
        if kind != "features":
            return None
        names = self._stored(self._views[0])
        rows = self._room.row(digest.hex(), [*names.values(), _GRID])
        with self._lock:
            self._count(hits=rows is not None, misses=rows is None)
        if rows is None:
            return None
        height, width = rows[_GRID][0].tolist()
        return as_features(self._views[0], {name: rows[stored] for name, stored in names.items()}, (height, width))

    def put(self, key: Hashable, value: ModelOutput) -> None:
        """Nothing: only whole passes are kept."""

    @torch.inference_mode()
    def _pass(self, pictures: list[Any]) -> tuple[dict[str, Tensor], list[str]]:
        inner, config = self._model.model, self._model.config.vision_config
        prepared = self._processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        pixels = prepared.to(self._model.device, self._model.dtype)
        shown = inner.multi_modal_projector.compressor.picture(pixels, config.patch_size, None)
        found = look(inner.vision_tower, shown, self._views, self._encoder)
        stored = {name: stored for view in self._views for name, stored in self._stored(view).items()}
        self.passed += len(pictures)
        digests = [digest.hex() for digest in image_digests(pixels)]
        grid = torch.tensor([[side // config.patch_size for side in shown.shape[-2:]]] * len(pictures))
        return {_GRID: grid} | {stored[name]: tensor for name, tensor in found.items()}, digests

    def _keep(self, images: list[str], pixels: list[str], parts: list[dict[str, Tensor]]) -> None:
        if parts:
            self._room.add(images, pixels, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        for many in (images, pixels, parts):
            many.clear()

    def _stored(self, view: View) -> dict[str, str]:
        """A view's names, each with that under which it is stored: the text space depends on a projection too."""
        text = f",{self._text}"
        return {name: name + (text if name.startswith("text_space") else "") for name in view.names.values()}

    def _names(self, *views: View) -> set[str]:
        return {stored for view in views for stored in self._stored(view).values()}


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of a module's weights with their names, shapes and types."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _picture(data: bytes) -> Any | None:
    try:
        return decode_image(data)
    except Exception:  # noqa: BLE001 - decoders raise whatever they like; the question about it says what
        return None
