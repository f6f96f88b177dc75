"""Every source by its short name, and which copies of them a user has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields

from qmop.vtcbench.natural import gqa, mme, mmstar, scienceqa, seed, textvqa
from qmop.vtcbench.natural.samples import Fault, Sample

Reader = Callable[[str, str | None], Iterator[Sample | Fault]]

READERS: dict[str, Reader] = {
    "mme": mme.read,
    "textvqa": textvqa.read,
    "gqa": gqa.read,
    "seed": seed.read,
    "mmstar": mmstar.read,
    "scienceqa": scienceqa.read,
}
"""How each source is read."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A user's own copy of one source.

    Attributes:
        path: parquet file or the folder of such files, TSV, or the makers' own JSON or folder; not given when absent.
        images: folder of the pictures of a JSON, where they do not lie beside it.
    """

    path: str | None = None
    images: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Copies of the sources on this machine; any of them may be absent.

    Attributes:
        mme: parquet, TSV or `MME_Benchmark_release_version`.
        textvqa: parquet, TSV or `TextVQA_0.5.1_val.json`.
        gqa: parquet of questions and pictures, TSV or `testdev_balanced_questions.json`.
        seed: parquet, TSV or `SEED-Bench.json`.
        mmstar: parquet or TSV.
        scienceqa: parquet, TSV or the folder of `problems.json`.
    """

    mme: Copy = field(default_factory=Copy)
    textvqa: Copy = field(default_factory=Copy)
    gqa: Copy = field(default_factory=Copy)
    seed: Copy = field(default_factory=Copy)
    mmstar: Copy = field(default_factory=Copy)
    scienceqa: Copy = field(default_factory=Copy)

    @property
    def given(self) -> dict[str, Copy]:
        """The copies that are there, by source."""
        copies = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: copy for name, copy in copies.items() if copy.path}

    def read(self) -> Iterator[Sample | Fault]:
        """Every sample of every copy, source after source.

        Raises:
            FileNotFoundError: if a copy is not there.
            ValueError: if no copy is given, or one cannot be read, or two questions of one have the same id.
        """
        if not self.given:
            raise ValueError(f"sources names no copy: give at least one of {', '.join(READERS)}, as --sources.mme.path")
        for name, copy in self.given.items():
            yield from _unique(name, READERS[name](str(copy.path), copy.images))


def _unique(name: str, found: Iterator[Sample | Fault]) -> Iterator[Sample | Fault]:
    seen: set[str] = set()
    for one in found:
        if isinstance(one, Sample):
            if one.key in seen:
                raise ValueError(f"{name} {one.id} comes twice: give one split of one copy, not several")
            seen.add(one.key)
        yield one
