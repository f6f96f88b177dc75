"""States on their way back from files into an engine of any size."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cluster.storage import StorageError, get_file, is_s3, join, sha256_of
from pipelines.training.agreement import from_all
from pipelines.training.fragments import KINDS, Fragment, held, put_back
from pipelines.training.state_scratch import part_folder
from pipelines.training.states import Part, StateCard, pieces


class DamagedStateError(ValueError):
    """A state that cannot be loaded by any engine; the message names it and says why."""


def load_state(engine: Any, uri: str, card: StateCard) -> int:
    """Put a state back into a fresh engine, fetching only the files that this process needs; a collective call.

    All processes look at their files before any touches the engine, so that it is as before where a state is refused.

    Returns:
        Bytes of the files that were fetched.

    Raises:
        DamagedStateError: in every process, with the same message, if in any a file is missing or its digest is not
            the card's.
        ValueError: if the state lacks what the engine trains.
        StorageError: if S3 is out of reach, which says nothing about the state.
    """
    wanted = list(held(engine))
    if unknown := [fragment.name for fragment in wanted if card.parameters.get(fragment.name) != fragment.whole]:
        raise ValueError(f"state {uri} does not fit this model: {', '.join(unknown[:3])} missing or of another size")
    needed = {part.name: part for f in wanted for part, *_ in pieces(card, f.name, f.start, f.count)}
    with ExitStack() as opened:
        files, why = _opened(uri, needed, opened)
        if reasons := [one for one in from_all(why) if one]:
            raise DamagedStateError(reasons[0])

        def fill(fragment: Fragment) -> dict[str, Tensor]:
            values = {kind: torch.empty(fragment.count) for kind in KINDS}
            for part, start, count in pieces(card, fragment.name, fragment.start, fragment.count):
                first = start - part.fragments[fragment.name][0]
                for kind in KINDS:
                    stretch = files[part.name].get_slice(f"{kind}/{fragment.name}")[first : first + count]
                    values[kind][start - fragment.start :][:count] = stretch
            return values

        put_back(engine, card.adam_step, fill)
    return sum(part.size for part in needed.values())


def _opened(uri: str, needed: dict[str, Part], opened: ExitStack) -> tuple[dict[str, Any], str]:
    """The files by name, open until the stack ends; or what is wrong with one of them."""
    scratch = opened.enter_context(part_folder(uri.rstrip("/").rpartition("/")[0])) if is_s3(uri) else None
    files: dict[str, Any] = {}
    for name, part in needed.items():
        try:
            files[name] = opened.enter_context(safe_open(_local(uri, part, scratch), framework="pt"))
        except StorageError as error:
            if is_s3(uri):
                raise
            return files, f"state {uri} is damaged: {error}"  # of a disk that cannot read it any more
        except (OSError, ValueError, SafetensorError) as error:
            return files, f"state {uri} is damaged: {error}"
    return files, ""


def _local(uri: str, part: Part, scratch: Path | None) -> str:
    """A part as a local file that is what the card says."""
    place = join(uri, part.name)
    if scratch is not None:
        copy = scratch / part.name
        place, digest = str(copy), get_file(place, copy)
    else:
        digest = sha256_of(place)
    if digest != part.sha256:
        raise ValueError(f"the digest of {part.name} is not the one in its card")
    return place
