"""Resumable states: files of fragments, visible by one last file that lists, sums up and may sign all others.

A state is a folder `<stage>-<step>` with one safetensors file per process. `state.json` is written last; it holds what
a run needs to go on (stage, step, position, recipe, digests, versions) and size, SHA-256 and fragments of every file.
With a key in the environment variable `QMOP_STATE_KEY` it is signed, and then nothing unsigned is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.storage import StorageError, exists, is_s3, join, list_files, list_sizes, read_bytes, remove, write_atomic
from pipelines.training.signing import check_signature, signature

CARD = "state.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process's file.

    Attributes:
        name: inside the folder.
        size: bytes.
        sha256: of the file.
        fragments: first element and number of elements by parameter.
    """

    name: str
    size: int
    sha256: str
    fragments: dict[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class StateCard:
    """What `state.json` says.

    Attributes:
        stage: of training.
        step: finished optimiser steps of the stage.
        adam_step: steps that the optimiser counts; fewer where steps were skipped.
        position: of the first sample that has not been trained on.
        zero: ZeRO stage that wrote it; any may read it.
        recipe: fields that shape the run, and their digest under `digest`.
        corpus_digest: of the corpus.
        versions: of this project and the libraries.
        parameters: elements by trained parameter.
        parts: every file.
        format: version of this layout.
    """

    stage: str
    step: int
    adam_step: int
    position: int
    zero: int
    recipe: dict[str, Any]
    corpus_digest: str
    versions: dict[str, str]
    parameters: dict[str, int]
    parts: tuple[Part, ...]
    format: int = FORMAT

    def to_json(self) -> bytes:
        """The file's bytes, signed where there is a key."""
        said = asdict(self)
        return json.dumps({"state": said, "signature": signature(said)}, indent=1).encode() + b"\n"

    @property
    def name(self) -> str:
        """The folder's name."""
        return folder_name(self.stage, self.step)


@dataclass(frozen=True)
class Found:
    """A state that can be loaded, and those newer ones that cannot, with the reasons."""

    uri: str | None = None
    card: StateCard | None = None
    refused: dict[str, str] = field(default_factory=dict)


def folder_name(stage: str, step: int) -> str:
    """The folder of a state; names sort by step within a stage."""
    return f"{stage}-{step:08d}"


def part_name(rank: int, world: int) -> str:
    """The file of a process."""
    return f"part-{rank:05d}-of-{world:05d}.safetensors"


def read_state(uri: str) -> StateCard:
    """The card of a state, after its signature and its files' sizes have been checked.

    Raises:
        FileNotFoundError: if there is no card: the folder is no state, or not finished.
        ValueError: if the card is damaged, wrongly signed, or files are missing or of another size.
    """
    place = join(uri, CARD)
    if not exists(place):
        raise FileNotFoundError(f"{uri} is no finished state: it has no {CARD}")
    try:
        document = json.loads(read_bytes(place))
        said = document["state"]
        check_signature(uri, said, document.get("signature"))
        if said["format"] != FORMAT:
            raise ValueError(f"{uri} has format {said['format']}, this version reads {FORMAT}")
        parts = tuple(
            Part(**{**part, "fragments": {name: (at[0], at[1]) for name, at in part["fragments"].items()}})
            for part in said["parts"]
        )
        card = StateCard(**{**said, "parts": parts})
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{uri} has a damaged {CARD} ({error}): delete that folder") from error
    if wrong := _misfits(uri, card):
        raise ValueError(f"{uri} is damaged: {', '.join(wrong)} missing or of another size than {CARD} says")
    return card


def latest(folder: str, stages: tuple[str, ...], refused: Mapping[str, str] | None = None) -> Found:
    """The newest state under a run's folder whose card and sizes are right; what is refused already is passed over.

    Raises:
        StorageError: if S3 is out of reach, which says nothing about a state.
    """
    unusable = dict(refused or {})
    for uri in newest_first(folder, stages):
        if uri in unusable:
            continue
        try:
            return Found(uri, read_state(uri), unusable)
        except (FileNotFoundError, ValueError) as error:
            if isinstance(error, StorageError) and is_s3(uri):
                raise
            unusable[uri] = str(error)
    return Found(refused=unusable)


def is_usable(uri: str) -> bool:
    """Whether a state could be loaded as far as its card and its files' sizes tell."""
    try:
        read_state(uri)
    except (FileNotFoundError, ValueError):
        return False
    return True


def newest_first(folder: str, stages: tuple[str, ...]) -> list[str]:
    """Folders with a card, by stage and step."""
    try:
        cards = list_files(folder, CARD, recursive=True)
    except FileNotFoundError:
        return []
    found = []
    for uri in cards:
        name = uri.removesuffix(f"/{CARD}").rsplit("/", 1)[-1]
        stage, _, step = name.rpartition("-")
        if stage in stages and step.isdigit():
            found.append((stages.index(stage), int(step), uri.removesuffix(f"/{CARD}")))
    return [uri for *_, uri in sorted(found, reverse=True)]


def forget_unfinished(folder: str) -> None:
    """Delete what killed processes left of states that never became visible; call it before any process writes."""
    try:
        files = list_files(folder, recursive=True)
    except FileNotFoundError:
        return
    finished = {uri.rsplit("/", 1)[0] for uri in files if uri.endswith(f"/{CARD}")}
    for uri in files:
        if uri.rsplit("/", 1)[0] not in finished:
            remove(uri)


def forget(uri: str) -> None:
    """Delete a state; the card first, so that it is none from the first moment on."""
    remove(join(uri, CARD))
    for name in list_files(uri, recursive=True):
        remove(name)


def publish_state(uri: str, card: StateCard) -> None:
    """Make a state visible, after its files' sizes have been compared with what their writers said.

    Raises:
        ValueError: if a file is not as its writer said, or parameters are not covered.
    """
    if wrong := _misfits(uri, card):
        raise ValueError(f"state {uri}: {', '.join(wrong)} did not arrive whole, so the state was not made visible")
    if gaps := [name for name, whole in card.parameters.items() if not _covered(name, whole, card.parts)]:
        raise ValueError(
            f"state {uri}: no process gave all of {', '.join(gaps[:3])}, so the state was not made visible"
        )
    write_atomic(join(uri, CARD), card.to_json())


def pieces(card: StateCard, name: str, start: int, count: int) -> Iterator[tuple[Part, int, int]]:
    """Which files hold a stretch of a parameter: part, first element and number of elements, in order, without gaps.

    Raises:
        ValueError: if the state does not hold all of it.
    """
    stop, at = start + count, start
    holders = sorted(
        ((part.fragments[name], part) for part in card.parts if name in part.fragments), key=lambda held: held[0]
    )
    for (first, number), part in holders:
        if first <= at < first + number and at < stop:
            taken = min(stop, first + number) - at
            yield part, at, taken
            at += taken
    if at < stop:
        raise ValueError(f"state {card.name}: elements {at} to {stop} of {name} are missing, it cannot be loaded")


def _misfits(uri: str, card: StateCard) -> list[str]:
    """The files that are not there in the size that the card says."""
    sizes = list_sizes(uri)
    return [part.name for part in card.parts if sizes.get(join(uri, part.name)) != part.size]


def _covered(name: str, whole: int, parts: tuple[Part, ...]) -> bool:
    at = 0
    for first, number in sorted(part.fragments[name] for part in parts if name in part.fragments):
        if first > at:
            return False
        at = max(at, first + number)
    return at == whole
