"""Write the report of an evaluation: Markdown, JSON, one self-contained HTML page, lmms-eval's layout."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from pyarrow import fs as pafs

from cluster.bounds import require_at_least
from cluster.progress import Progress
from cluster.storage import arrow_filesystem, join, write_atomic
from jobs.inspection import Inspected, checkpoints_of, costs_of, inspect
from jobs.report_pictures import pictures_of
from pipelines.evaluation.store import index_of, read_index
from pipelines.evaluation.units import UNITS
from qmop.vtcbench.records import Record, require_label
from qmop.vtcbench.report import (
    Report,
    lmms_eval_files,
    pick_samples,
    require_second_run,
    summarise,
    to_html,
    to_json,
    to_markdown,
    with_drawings,
    worth_showing,
)

_TIMED = 8
"""Questions that are timed in one batch."""


@dataclass(frozen=True, kw_only=True)
class ReportRecipe:
    """A report.

    Attributes:
        results: results store of an evaluation.
        output: folder of the report; the results store itself when absent.
        reference: label of the uncompressed model.
        blind: label of the model that saw no picture.
        floor: label of a second run of the uncompressed model, of another seed; its loss is the floor of all others'.
        suite: folder of the suite, where it no longer lies where it lay at the evaluation.
        samples: items shown with picture and answers.
        inspect: load every checkpoint once more, to time it on this machine and to draw over the samples what it kept.
        rounds: how often each is timed.
        seed: of the bootstrap.
    """

    results: str
    output: str | None = None
    reference: str = "uncompressed"
    blind: str = "blind"
    floor: str | None = None
    suite: str | None = None
    samples: int = 6
    inspect: bool = False
    rounds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a ValueError that names the field."""
        require_at_least(self, 1, "rounds")
        require_at_least(self, 0, "samples", "seed")


RECIPE = ReportRecipe


def run(recipe: ReportRecipe, progress: Progress) -> int:
    """Write every form of the report."""
    write_report(recipe, progress)
    return 0


def write_report(recipe: ReportRecipe, progress: Progress) -> Report:
    """Write every form of the report and return it; `report.html` is the page for people."""
    records, suite = read_index(recipe.results)
    index = index_of(recipe.results)
    _check_labels(recipe, records)
    folder = recipe.output or recipe.results
    shown, timed = worth_showing(records, recipe.samples), _timed(records) if recipe.inspect else []
    pictures = pictures_of({*shown, *timed}, records, recipe.suite or suite, given=recipe.suite is not None)
    samples = pick_samples(records, pictures, recipe.samples)
    with progress.stage("counting cost"):
        checkpoints = checkpoints_of(recipe.results, records, progress)
        costs = costs_of(checkpoints, progress)
    seen = Inspected()
    if recipe.inspect:
        questions = {record.key: record.question for record in records}
        asked = [(pictures[key], questions[key]) for key in timed]
        with progress.stage(f"timing {len(checkpoints)} checkpoints and drawing what they keep"):
            seen = inspect(checkpoints, asked, samples, progress, rounds=recipe.rounds)
    with progress.stage(f"writing the report to {folder}"):
        report = summarise(
            records,
            recipe.reference,
            recipe.blind,
            floor=recipe.floor,
            seed=recipe.seed,
            unanswered=_unanswered(index, records),
            costs=costs,
            profiles=seen.profiles,
        )
        files = {
            "report.md": to_markdown(report),
            "report.json": to_json(report),
            "report.html": to_html(report, with_drawings(samples, seen.drawings)),
            **_harness_files(report, records, _date_of(recipe.results, index)),
        }
        for name, text in files.items():
            write_atomic(join(folder, name), text.encode())
    progress.say(f"report: {join(folder, 'report.html')}")
    return report


def _check_labels(recipe: ReportRecipe, records: list[Record]) -> None:
    """Refuse labels that say nothing, before anything is read or timed."""
    for field, usual in (("reference", ReportRecipe.reference), ("blind", ReportRecipe.blind)):
        label = getattr(recipe, field)
        if label != usual:  # the usual ones may be missing: then nothing is told against them
            require_label(field, label, records, recipe.results)
    if recipe.floor is not None:
        require_label("floor", recipe.floor, records, recipe.results)
        require_second_run(records, recipe.reference, recipe.floor)


def _unanswered(index: dict[str, Any], records: list[Record]) -> dict[str, dict[str, str]]:
    """By label, the keys of items that could not be answered, with the reason."""
    known = {(record.label, record.key) for record in records}
    found: dict[str, dict[str, str]] = {}
    for name, why in index.get("poisoned", {}).items():
        label, _, key = name.rpartition(": ")
        if (label, key) in known:
            found.setdefault(label, {})[key] = why
    return found


def _harness_files(report: Report, records: list[Record], date: datetime) -> dict[str, str]:
    """Every row in lmms-eval's layout, by file name."""
    return {
        f"lmms_eval/{_folder_of(row.label)}/{name}": text
        for row in report.rows
        for name, text in lmms_eval_files(report, records, row.label, date).items()
    }


def _date_of(store: str, index: dict[str, Any]) -> datetime:
    """When the evaluation ended: when the last of its units was written, in UTC; no later report moves it."""
    units = set(index["units"])
    system, folder = arrow_filesystem(join(store, UNITS))
    found = (system or pafs.LocalFileSystem()).get_file_info(pafs.FileSelector(folder))
    return max(info.mtime for info in found if info.base_name.partition(".")[0] in units).astimezone(UTC)


def _folder_of(label: str) -> str:
    """A label as a single folder name that no other label has: what no name may hold is written as in a URL."""
    name = quote(label, safe=" =+,@")
    return name.replace(".", "%2E") if not name.strip(".") else name


def _timed(records: list[Record]) -> list[str]:
    """Keys of a few items, the same for every row."""
    return list(dict.fromkeys(record.key for record in records))[:_TIMED]
