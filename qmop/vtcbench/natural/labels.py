"""The labels: which samples belong to the natural suite, and to which dimension.

JSONL with one object per sample, or CSV with a header, so that a person can read and correct them:
`source`, `id`, `decision` (`accept` or `reject`), `dimension` (a code, or nothing for a rejected sample) and whatever
else was noted, such as `explanation` and `model`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.natural.sources import READERS

ACCEPT, REJECT = "accept", "reject"
Name = tuple[str, str]
"""Source and id."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """The verdict on one sample: accepted with exactly one dimension, or rejected with none."""

    source: str
    id: str
    decision: str
    dimension: str | None
    explanation: str = ""

    def __post_init__(self) -> None:
        if self.source not in READERS:
            raise ValueError(f"source is {self.source!r}, expected one of {', '.join(READERS)}")
        if self.decision not in (ACCEPT, REJECT):
            raise ValueError(f"decision is {self.decision!r}, expected {ACCEPT} or {REJECT}")
        if self.decision == REJECT and self.dimension is not None:
            raise ValueError(f"dimension is {self.dimension!r} though the sample is rejected: leave it empty")
        if self.decision == ACCEPT and self.dimension not in DIMENSIONS:
            raise ValueError(
                f"dimension is {self.dimension!r}, an accepted sample needs one of {', '.join(DIMENSIONS)}"
            )

    @property
    def name(self) -> Name:
        """What it is a verdict on."""
        return self.source, self.id

    def to_json(self, **noted: object) -> str:
        """One line of the file, with whatever else is to be noted."""
        fields = {"source": self.source, "id": self.id, "decision": self.decision, "dimension": self.dimension}
        return json.dumps({**fields, "explanation": self.explanation, **noted}, ensure_ascii=False)


def read_labels(path: str | Path) -> dict[Name, Label]:
    """The labels of a file, in its order.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming the line, if one is no label or speaks of a sample a second time.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"labels {path} does not exist: make it with `qmop label`, or write it by hand")
    labels: dict[Name, Label] = {}
    for number, row in _rows(file):
        label = _label(row, f"{path} line {number}")
        if label.name in labels:
            raise ValueError(f"{path} line {number}: {label.source} {label.id} is labelled a second time: keep one")
        labels[label.name] = label
    return labels


def labels_digest(labels: Iterable[Label]) -> str:
    """SHA-256 of what the labels say, whatever their order, format and notes."""
    said = sorted([label.source, label.id, label.decision, label.dimension] for label in labels)
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def choose(labels: Iterable[Label], per_dimension: int | None, seed: int) -> dict[Name, str]:
    """The accepted samples to take, with their dimensions.

    Args:
        labels: verdicts.
        per_dimension: at most so many of each dimension, as even over the sources as they allow; all when absent.
        seed: which ones, where there are more.
    """
    accepted: dict[str, dict[str, list[str]]] = {code: {} for code in DIMENSIONS}
    for label in labels:
        if label.dimension is not None:
            accepted[label.dimension].setdefault(label.source, []).append(label.id)
    chosen: dict[Name, str] = {}
    for code, sources in accepted.items():
        quotas = _quotas({name: len(ids) for name, ids in sources.items()}, per_dimension)
        for name, ids in sources.items():
            ranked = sorted(ids, key=lambda one, name=name: rank(seed, name, one))  # type: ignore[misc]
            chosen |= {(name, one): code for one in ranked[: quotas[name]]}
    return chosen


def rank(seed: int, source: str, name: str) -> bytes:
    """A sample's place in a random order that depends on nothing but the seed and its name."""
    return hashlib.sha256(f"{seed}/{source}/{name}".encode()).digest()


def _quotas(counts: dict[str, int], most: int | None) -> Counter[str]:
    """How many of each source, one at a time in turn, until there are enough."""
    if most is None or most >= sum(counts.values()):
        return Counter(counts)
    quotas: Counter[str] = Counter()
    while most > 0:
        for name in sorted(counts):
            if most > 0 and quotas[name] < counts[name]:
                quotas[name] += 1
                most -= 1
    return quotas


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.suffix.lower() == ".csv":
        with file.open(newline="", encoding="utf-8-sig") as stream:  # spreadsheets put a mark in front
            reader = csv.DictReader(stream)
            yield from ((reader.line_num, row) for row in reader)
        return
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file} line {number} is not JSON ({error}): correct or remove it") from error
        if not isinstance(row, dict):
            raise ValueError(f"{file} line {number} is no JSON object: correct or remove it")
        yield number, row


def _label(row: dict[str, Any], place: str) -> Label:
    if missing := [name for name in ("source", "id", "decision", "dimension") if name not in row]:
        raise ValueError(f"{place} has no {', '.join(missing)}: a label has source, id, decision and dimension")
    try:
        return Label(
            source=str(row["source"]).strip(),
            id=str(row["id"]).strip(),
            decision=str(row["decision"]).strip().lower(),
            dimension=str(row["dimension"] or "").strip().upper() or None,
            explanation=str(row.get("explanation") or ""),
        )
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
