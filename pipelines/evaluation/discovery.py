"""From what a user names to the checkpoints that can be judged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cluster.storage import (
    StorageError,
    absolute,
    exists,
    is_s3,
    join,
    list_files,
    list_stamps,
    read_bytes,
    sha256_of,
)
from pipelines.evaluation.wholeness import UnfinishedError, require_whole
from pipelines.training.exports import CARD, FOLDER, read_card, shapes
from qmop.compressors import projector_spec
from qmop.configuration_qmop import QMoPConfig
from qmop.loading import require_own_family
from qmop.tiny.base import TINY, base_path
from qmop.views import View, view_of

_UNCOMPRESSED, _CONFIG = "mlp", "config.json"
_known: dict[str, tuple[tuple[tuple[str, str], ...], str]] = {}
"""By folder, what its files looked like when they were last read, and the digest that came of it."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A checkpoint to judge.

    Attributes:
        label: its row in the report.
        uri: its folder.
        digest: its identity, by content.
        method: compressor.
        budget: visual tokens per image; a checkpoint of QMoP's first stage shows three times its budget.
        view: what it reads off the vision tower; not known of those that are not ours.
    """

    label: str
    uri: str
    digest: str
    method: str
    budget: int
    view: View | None = None


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """The candidates, and the folders that were passed over with the reason."""

    candidates: tuple[Candidate, ...]
    skipped: dict[str, str]


def discover(named: list[str], *, patient: bool = False) -> Discovery:
    """Resolve every name; a model without a card that is not whole is passed over as long as others are.

    Args:
        named: each `PATH` or `LABEL=PATH`.
        patient: more may come: a name that leads nowhere yet or to something half copied, and a checkpoint whose label
            is taken, are passed over.

    Raises:
        FileNotFoundError: if a name leads to no checkpoint at all, or all that is there is not whole.
        ValueError: if two checkpoints share a label, or one is damaged.
        StorageError: if a storage cannot be reached.
    """
    found: dict[str, Candidate] = {}
    skipped: dict[str, str] = {}
    unfinished: UnfinishedError | None = None
    for name in named:
        label, path = _split(name)
        is_s3(path)  # refuses what no patience makes right
        try:
            candidates = _resolve(label, path, skipped)
        except StorageError:  # a storage that is away says nothing about what it holds
            raise
        except (FileNotFoundError, ValueError) as error:
            if isinstance(error, UnfinishedError):
                unfinished = unfinished or error
            elif not patient:
                raise
            skipped[path] = str(error)
            continue
        for candidate in candidates:
            other = found.setdefault(candidate.label, candidate)
            if other.digest != candidate.digest:
                clash = (
                    f"checkpoints {other.uri} and {candidate.uri} are both labelled {candidate.label!r}: "
                    "name them LABEL=PATH"
                )
                if not patient:
                    raise ValueError(clash)
                skipped[candidate.uri] = clash
    if unfinished is not None and not found and not patient:
        raise unfinished
    return Discovery(candidates=tuple(found.values()), skipped=skipped)


def _split(name: str) -> tuple[str | None, str]:
    """Label and path of `LABEL=PATH`; a path that exists may hold an equals sign itself."""
    label, equals, path = name.partition("=")
    return (None, name) if not equals or "://" in label or exists(name) else (label, path)


def _resolve(label: str | None, path: str, skipped: dict[str, str]) -> list[Candidate]:
    if path == TINY:
        return [_foreign(label or "uncompressed", str(base_path(TINY)))]
    path = absolute(path)
    if _is_pattern(path) and not exists(path):
        found = _matching(label, path)
        return _some(found, f"checkpoints names {path}, but no finished checkpoint matches it", skipped)
    if exists(join(path, CARD)):
        return [_carded(label, path)]
    if exists(join(path, _CONFIG)):
        return [_foreign(label, path)]
    return _some(_inside(label, path), f"checkpoints names {path}, but no finished checkpoint is there", skipped)


def _some(found: Discovery, complaint: str, skipped: dict[str, str]) -> list[Candidate]:
    """The checkpoints that were found; what was passed over is noted.

    Raises:
        FileNotFoundError: if there is none.
    """
    skipped |= found.skipped
    if not found.candidates:
        reasons = "; ".join(f"{folder} {reason}" for folder, reason in found.skipped.items())
        raise FileNotFoundError(f"{complaint}{f' ({reasons})' if reasons else ''}: name a folder with {CARD}")
    return list(found.candidates)


def _inside(label: str | None, path: str) -> Discovery:
    """The checkpoints of a folder, or of a run's output."""
    if exists(join(path, FOLDER)):
        path = join(path, FOLDER)
    files = list_files(path, recursive=True) if exists(path) else []
    return _finished(files, lambda folder: f"{label}/{_last(folder)}" if label else None)


def _is_pattern(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _matching(label: str | None, pattern: str) -> Discovery:
    """The checkpoints whose folders match a pattern, in which `*` stays between two slashes."""
    parts = pattern.split("/")
    fixed = next(place for place, part in enumerate(parts) if _is_pattern(part))
    base = "/".join(parts[:fixed])
    files = list_files(base, recursive=True) if exists(base) else []
    fitting = [uri for uri in files if _fits(uri.rsplit("/", 1)[0], parts)]

    def labelled(folder: str) -> str | None:
        if label or sum(map(_is_pattern, parts)) > 1:  # folders of several runs may have the same name
            inside = "/".join(part for part in folder.split("/")[fixed:] if part != FOLDER)
            return f"{label}/{inside}" if label else inside
        return None

    return _finished(fitting, labelled)


def _fits(folder: str, parts: list[str]) -> bool:
    names = folder.split("/")
    return len(names) == len(parts) and all(map(fnmatchcase, names, parts))


def _finished(files: Iterable[str], labelled: Callable[[str], str | None]) -> Discovery:
    """The finished checkpoints among some files, and the others with the reason."""
    there, candidates, skipped = set(files), [], {}
    for folder in _once(uri.rsplit("/", 1)[0] for uri in there):
        if join(folder, CARD) in there:
            try:
                candidates.append(_carded(labelled(folder), folder))
            except (ValueError, FileNotFoundError) as error:
                skipped[folder] = str(error)
        elif join(folder, _CONFIG) in there:
            skipped[folder] = f"has no {CARD}: not finished"
    return Discovery(candidates=tuple(candidates), skipped=skipped)


def _once(folders: Iterable[str]) -> list[str]:
    """Each folder once, under its own name rather than that of a link beside it, such as `latest`."""
    names: dict[str, list[str]] = {}
    for folder in set(folders):
        names.setdefault(folder if is_s3(folder) else os.path.realpath(folder), []).append(folder)
    return sorted(min(ways, key=lambda way: (_last(way) != _last(real), len(way), way)) for real, ways in names.items())


def _last(folder: str) -> str:
    return folder.rstrip("/").rsplit("/", 1)[-1]


def _carded(label: str | None, uri: str) -> Candidate:
    card = read_card(uri)
    return Candidate(
        label=label or card.name,
        uri=uri,
        digest=card.digest,
        method=card.compressor,
        budget=card.visual_tokens,
        view=_view(uri),
    )


def _view(uri: str) -> View | None:
    """What a checkpoint reads off its tower; a folder that only says what it holds is left to those that load it."""
    return view_of(_config(uri)) if exists(join(uri, _CONFIG)) else None


def _config(uri: str) -> QMoPConfig:
    """The configuration, of a remote checkpoint as well."""
    data = read_bytes(join(uri, _CONFIG))
    told = f"{join(uri, _CONFIG)} cannot be read (%s): copy or save the checkpoint again"
    try:
        config: QMoPConfig = QMoPConfig.from_dict(json.loads(data))
    except json.JSONDecodeError as error:
        raise UnfinishedError(told % error) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(told % error) from error
    return config


def _foreign(label: str | None, uri: str) -> Candidate:
    config = _config(uri)
    require_own_family(config.model_type, f"checkpoint {uri}")
    name = "uncompressed" if config.compressor == _UNCOMPRESSED else _last(uri)
    return Candidate(
        label=label or name,
        uri=uri,
        digest=_content(uri, asking=config.query_config is not None),
        method=config.compressor,
        budget=projector_spec(config).token_count(),
        view=view_of(config),
    )


def _content(uri: str, *, asking: bool) -> str:
    """SHA-256 of all files that shape a model: methods without weights of their own differ in `config.json` alone.

    They are read again only once one of them has changed: whoever watches looks every few seconds.
    """
    seen = tuple(sorted((name, stamp) for name, stamp in list_stamps(uri, recursive=True).items() if shapes(name)))
    if _known.get(uri, ((), ""))[0] != seen:
        require_whole(uri, asking=asking)
        told = "".join(f"{name.removeprefix(uri)}{sha256_of(name)}" for name, _ in seen)
        _known[uri] = (seen, hashlib.sha256(told.encode()).hexdigest())
    return _known[uri][1]
