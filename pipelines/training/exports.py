"""Exports: checkpoints as safetensors that anybody can load, visible only when complete.

A checkpoint is a folder with `checkpoint.json`. That file is written last and lists every other file with its size
and digest, so a half-written folder is never mistaken for a checkpoint, on disk or in S3.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from cluster.storage import (
    exists,
    get_file,
    is_s3,
    join,
    list_files,
    list_sizes,
    put_file,
    read_bytes,
    remove,
    sha256_of,
    write_atomic,
)
from qmop import __version__
from qmop.model_card import write_card
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor

CARD = "checkpoint.json"
FOLDER = "checkpoints"
WEIGHTS = "model.safetensors"
RETIRED = "retired.json"
_DESCRIPTION = "README.md"
"""Stands where a run has removed an export of its own."""
_SHAPING = (".json", ".safetensors", ".jinja", ".txt", ".model")
_LIBRARIES = ("torch", "transformers", "deepspeed", "ray")


@dataclass(frozen=True, kw_only=True)
class CheckpointCard:
    """What `checkpoint.json` says.

    Attributes:
        name: folder name, such as `qmop-16-tune-000200`.
        digest: SHA-256 over the digests of all files, the checkpoint's identity.
        stage: training stage that it comes from.
        step: optimiser steps of that stage.
        compressor: method.
        tokens: budget.
        visual_tokens: tokens per image that the language model sees; more than the budget while QMoP aligns.
        seed: of the run.
        recipe_digest: of the recipe, see `TrainRecipe.digest`.
        corpus_digest: of the corpus.
        files: size and SHA-256 of every other file.
        versions: of the libraries that shaped it.
    """

    name: str
    digest: str
    stage: str
    step: int
    compressor: str
    tokens: int
    visual_tokens: int
    seed: int
    recipe_digest: str
    corpus_digest: str
    files: dict[str, tuple[int, str]]
    versions: dict[str, str]


def library_versions() -> dict[str, str]:
    """Of this project and the libraries that shape what it trains."""
    return {"qmop": __version__, **{name: version(name) for name in _LIBRARIES}}


def export_name(compressor: str, tokens: int, stage: str, step: int) -> str:
    """The folder name of an export; names sort by step within a stage."""
    return f"{compressor}-{tokens}-{stage}-{step:06d}"


def publish(
    model: QMoPForConditionalGeneration,
    processor: QMoPProcessor,
    state: dict[str, Any],
    uri: str,
    facts: dict[str, Any],
) -> CheckpointCard:
    """Write a checkpoint: every file first, `checkpoint.json` last.

    Args:
        model: gives the configuration; its own tensors are not read.
        processor: saved beside the weights.
        state: full state dict of the model.
        uri: the checkpoint's folder.
        facts: the card's fields other than name, digest, visual tokens, files and versions.
    """
    for mark in (CARD, RETIRED):  # an export that is written anew is no checkpoint until it is whole again
        remove(join(uri, mark))
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, state_dict=state)
        processor.save_pretrained(scratch)
        write_card(scratch, name=uri.rsplit("/", 1)[-1])
        files = {}
        for path in sorted(p for p in Path(scratch).rglob("*") if p.is_file()):
            name = path.relative_to(scratch).as_posix()
            files[name] = (path.stat().st_size, sha256_of(path))
            put_file(path, join(uri, name))
    model_files = ((name, digest) for name, (_, digest) in files.items() if name != _DESCRIPTION)
    digest = hashlib.sha256("".join(f"{n}{d}" for n, d in model_files).encode()).hexdigest()
    card = CheckpointCard(
        name=uri.rsplit("/", 1)[-1],
        digest=digest,
        visual_tokens=processor.visual_tokens,
        files=files,
        versions=library_versions(),
        **facts,
    )
    write_atomic(join(uri, CARD), (json.dumps(asdict(card), indent=2) + "\n").encode())
    return card


def read_card(uri: str) -> CheckpointCard:
    """The card of a checkpoint, after its files have been compared with it.

    Every file's size is; on a local disk also the content of every file but the description and the weights, which
    are large. What loads a checkpoint (`local_copy`) compares the weights too.

    Raises:
        FileNotFoundError: if there is no card: the folder is no checkpoint, or not finished.
        ValueError: if files are missing or differ, or the card names some outside the folder; the message names them.
    """
    if not exists(join(uri, CARD)):
        raise FileNotFoundError(f"{uri} is no finished checkpoint: it has no {CARD}")
    try:
        fields = json.loads(read_bytes(join(uri, CARD)))
        fields["files"] = {name: tuple(entry) for name, entry in fields["files"].items()}
        card = CheckpointCard(**fields)
        sizes = {_inside(name, uri): size for name, (size, _) in card.files.items()}
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{uri} has a {CARD} that this version cannot read ({error}); export it again") from error
    there = list_sizes(uri, recursive=True)
    wrong = [name for name, size in sizes.items() if there.get(join(uri, name)) != size]
    if wrong:
        raise ValueError(
            f"{uri} is damaged: {', '.join(wrong)} missing or of another size than {CARD} says; export it again"
        )
    if not is_s3(uri):
        for name in card.files:
            if name not in (WEIGHTS, _DESCRIPTION):
                _require(uri, name, sha256_of(join(uri, name)), card)
    return card


def _inside(name: str, uri: str) -> str:
    """A file's name below its folder, as a card or a listing gives it.

    Raises:
        ValueError: for everything that could lead elsewhere.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"{uri} names a file {name!r}, which is not inside it: do not use this checkpoint")
    return name


def is_complete(uri: str) -> bool:
    """Whether a checkpoint is there with all its files, or was and has been removed by its own run."""
    try:
        read_card(uri)
    except (FileNotFoundError, ValueError):
        return exists(join(uri, RETIRED))
    return True


def shapes(name: str) -> bool:
    """Whether a file of a model folder shapes the model: configurations, weights, tokenizer."""
    return name.endswith(_SHAPING)


def shaping_files(uri: str) -> list[str]:
    """The files under a model folder that shape the model, in order of name."""
    return sorted(filter(shapes, list_files(uri, recursive=True)))


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A checkpoint as a local folder with verified weights; a temporary copy if it is remote.

    A model folder without a card, such as the embedded base, is taken as it is.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if the weights' digest is not the card's.
    """
    bare = not exists(join(uri, CARD)) and exists(join(uri, "config.json"))
    card = None if bare else read_card(uri)
    if not is_s3(uri):
        if card is not None:
            _require(uri, WEIGHTS, sha256_of(join(uri, WEIGHTS)), card)
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory() as scratch:
        names = [name.removeprefix(f"{uri}/") for name in shaping_files(uri)] if card is None else list(card.files)
        for name in names:
            target = Path(scratch, _inside(name, uri))
            target.parent.mkdir(parents=True, exist_ok=True)
            found = get_file(join(uri, name), target)
            if card is not None:
                _require(uri, name, found, card)
        yield Path(scratch)


def _require(uri: str, name: str, digest: str, card: CheckpointCard) -> None:
    if digest != card.files[name][1]:
        raise ValueError(f"{uri} is damaged: the digest of {name} is not the one in {CARD}; export it again")
