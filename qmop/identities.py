"""What tells pictures and questions from others, and modules from others and from what they were, for caches."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_numbers = count()
_modules: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def image_digests(pixels_BCHW: Tensor) -> list[bytes]:
    """A digest of each image's pixels, size and type; on an accelerator the pixels are copied to the host for it."""
    head = f"{tuple(pixels_BCHW.shape[1:])} {pixels_BCHW.dtype}".encode()
    rows = pixels_BCHW.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
    return [_digest(head, row.data) for row in rows]


def query_digests(input_ids: Tensor, attention_mask: Tensor | None) -> list[bytes]:
    """A digest of each question's real tokens, whatever it was padded to beside others.

    Args:
        input_ids: `(R, T)`, or `(R, G, T)` in segments.
        attention_mask: of the same shape.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    rows = zip(input_ids.cpu().flatten(1), mask.cpu().bool().flatten(1), strict=True)
    return [_digest(b"", ids[real].contiguous().numpy().data) for ids, real in rows]


def _digest(head: bytes, data: Any) -> bytes:
    digest = hashlib.blake2b(head, digest_size=16)
    digest.update(data)
    return digest.digest()


def plain_settings(module: nn.Module) -> tuple[Hashable, ...]:
    """What a user may change on a module: numbers, words, switches and tuples of them, in the attributes of its parts.

    Attributes whose names begin with an underscore are the module's own business.
    """
    return tuple((name, type(part), *_plain_fields(part)) for name, part in module.named_modules())


def _plain_fields(part: nn.Module) -> list[tuple[str, Hashable]]:
    return [(field, value) for field, value in vars(part).items() if not field.startswith("_") and _is_plain(value)]


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)


def module_identity(module: nn.Module) -> tuple[int, int]:
    """What tells a module's results from those of any other, and from its own after its weights have changed."""
    number = _modules.setdefault(module, next(_numbers))
    weights = (
        (weight.data_ptr(), weight.dtype, 0 if weight.is_inference() else weight._version)  # noqa: SLF001 - torch has no other name for it
        for weight in module.state_dict(keep_vars=True).values()
    )
    return number, hash(tuple(weights))
