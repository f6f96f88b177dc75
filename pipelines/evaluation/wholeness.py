"""Whether a model folder without a card is whole: nothing else says that its last file has been written."""

from __future__ import annotations

import json
from collections.abc import Iterable

from cluster.storage import join, list_sizes, open_read
from pipelines.training.exports import WEIGHTS

_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000
"""Of a safetensors file, in bytes; the format's own limit."""
_TOKENIZER = (("tokenizer_config.json",), ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"))
_PICTURES = ("processor_config.json", "preprocessor_config.json")
_ASKING = "query_tokenizer"
"""Folder of the text tower's tokenizer; where it lacks, the language model's would silently stand in for it."""


class UnfinishedError(FileNotFoundError):
    """A folder holds a part of a model; more of it may come."""


def require_whole(uri: str, *, asking: bool) -> None:
    """Refuse a model folder that lacks a file, or whose weights are shorter or longer than they say.

    Args:
        uri: the folder, with a `config.json`.
        asking: whether the model has a text tower.

    Raises:
        UnfinishedError: naming what is missing, and what to do.
    """
    sizes = {name.removeprefix(f"{uri}/"): size for name, size in list_sizes(uri, recursive=True).items()}
    if WEIGHTS not in sizes:
        raise UnfinishedError(
            f"checkpoint {uri} has no {WEIGHTS}: pickled and split weights are not read, save it again with "
            "save_pretrained in one file"
        )
    if missing := _missing(sizes, asking=asking):
        raise UnfinishedError(
            f"checkpoint {uri} has no {', no '.join(missing)}: copy it again, or save its processor there as well"
        )
    said = _said_size(join(uri, WEIGHTS), sizes[WEIGHTS])
    if said != sizes[WEIGHTS]:
        told = "cannot be read" if said is None else f"has {sizes[WEIGHTS]:,} of the {said:,} bytes that it announces"
        raise UnfinishedError(f"checkpoint {uri} is not whole: its {WEIGHTS} {told}; copy or save it again")


def _missing(names: Iterable[str], *, asking: bool) -> list[str]:
    needed = [*_TOKENIZER, _PICTURES]
    if asking:
        needed += [tuple(f"{_ASKING}/{name}" for name in ways) for ways in _TOKENIZER]
    there = set(names)
    return [" or ".join(ways) for ways in needed if there.isdisjoint(ways)]


def _said_size(uri: str, size: int) -> int | None:
    """The size that a safetensors file announces in its header, in bytes; None if there is no whole header."""
    with open_read(uri) as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if length > min(_LONGEST_HEADER, size):
            return None
        header = stream.read(length)
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        return _LENGTH_BYTES + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None
