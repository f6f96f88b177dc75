"""From what a user names to the checkpoints that can be judged."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.storage import absolute, exists, join, list_files, sha256_of
from pipelines.training.exports import CARD, FOLDER, WEIGHTS, read_card
from qmop.compressors import projector_spec
from qmop.configuration_qmop import QMoPConfig
from qmop.tiny.base import TINY, base_path

_UNCOMPRESSED = "mlp"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A checkpoint to judge.

    Attributes:
        label: its row in the report.
        uri: its folder.
        digest: its identity, by content.
        method: compressor.
        budget: visual tokens per image; a checkpoint of QMoP's first stage shows three times its budget.
    """

    label: str
    uri: str
    digest: str
    method: str
    budget: int


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """The candidates, and the folders that were passed over with the reason."""

    candidates: tuple[Candidate, ...]
    skipped: dict[str, str]


def discover(named: list[str]) -> Discovery:
    """Resolve every name.

    Raises:
        FileNotFoundError: if a name leads to no checkpoint at all.
        ValueError: if two checkpoints share a label.
    """
    found: dict[str, Candidate] = {}
    skipped: dict[str, str] = {}
    for name in named:
        label, path = _split(name)
        for candidate in _resolve(label, path, skipped):
            other = found.get(candidate.label)
            if other is not None and other.digest != candidate.digest:
                raise ValueError(
                    f"checkpoints {other.uri} and {candidate.uri} are both labelled {candidate.label!r}: "
                    "name them LABEL=PATH"
                )
            found[candidate.label] = candidate
    return Discovery(candidates=tuple(found.values()), skipped=skipped)


def _split(name: str) -> tuple[str | None, str]:
    """Label and path of `LABEL=PATH`; a path that exists may hold an equals sign itself."""
    label, equals, path = name.partition("=")
    return (None, name) if not equals or exists(name) else (label, path)


def _resolve(label: str | None, path: str, skipped: dict[str, str]) -> list[Candidate]:
    if path == TINY:
        return [_foreign(label or "uncompressed", str(base_path(TINY)))]
    path = absolute(path)
    if exists(join(path, CARD)):
        return [_carded(label, path)]
    if exists(join(path, "config.json")):
        if exists(join(path, WEIGHTS)):
            return [_foreign(label, path)]
        raise FileNotFoundError(f"checkpoint {path} has no {WEIGHTS}: only safetensors are read")
    if not (candidates := _inside(label, path, skipped)):
        raise FileNotFoundError(f"checkpoints names {path}, but no finished checkpoint is there")
    return candidates


def _inside(label: str | None, path: str, skipped: dict[str, str]) -> list[Candidate]:
    """The checkpoints of a folder, or of a run's output."""
    if exists(join(path, FOLDER)):
        path = join(path, FOLDER)
    files = list_files(path, recursive=True) if exists(path) else []
    candidates = []
    for folder in sorted({uri.rsplit("/", 1)[0] for uri in files}):
        if join(folder, CARD) in files:
            try:
                candidates.append(_carded(f"{label}/{folder.rsplit('/', 1)[-1]}" if label else None, folder))
            except ValueError as error:
                skipped[folder] = str(error)
        elif join(folder, "config.json") in files:
            skipped[folder] = f"has no {CARD}: not finished"
    return candidates


def _carded(label: str | None, uri: str) -> Candidate:
    card = read_card(uri)
    return Candidate(
        label=label or card.name, uri=uri, digest=card.digest, method=card.compressor, budget=card.visual_tokens
    )


def _foreign(label: str | None, uri: str) -> Candidate:
    config = QMoPConfig.from_pretrained(uri, local_files_only=True)
    name = "uncompressed" if config.compressor == _UNCOMPRESSED else uri.rstrip("/").rsplit("/", 1)[-1]
    return Candidate(
        label=label or name,
        uri=uri,
        digest=sha256_of(join(uri, WEIGHTS)),
        method=config.compressor,
        budget=projector_spec(config).token_count(),
    )
