"""Compare methods on the embedded base: `python -m qmop.tiny.comparison`.

Runs whatever is not finished yet, each run by itself, so it can be stopped at any time and goes on where it stood. Then
it prints the tables of what is there. Rows that are no reference, branch or method of the primary comparison are named
by `--rows`; `--list` shows all, with what is finished.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
import transformers

from qmop.tiny.comparison import kept
from qmop.tiny.comparison.material import base_digest
from qmop.tiny.comparison.results import gather
from qmop.tiny.comparison.rows import ABLATIONS, BUDGETS, OTHER_METHODS, PRIMARY_ROWS, UNTUNED, Settings, Unit, plan
from qmop.tiny.comparison.runs import finished, run_all, unfinished
from qmop.tiny.comparison.table import page
from qmop.vtcbench.records import Record

GROUPS = {"primary": PRIMARY_ROWS, "methods": OTHER_METHODS, "ablations": ABLATIONS, "untuned": UNTUNED}

_log = logging.getLogger("qmop.comparison")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m qmop.tiny.comparison", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/comparison"), help="folder of records and features")
    parser.add_argument("--rows", nargs="+", default=["primary"], help=f"names, or {', '.join(GROUPS)}")
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS), help="visual tokens of 144")
    parser.add_argument("--seeds", type=int, help="at most so many runs of each row")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at once, of one thread each")
    parser.add_argument("--list", action="store_true", help="show the runs and which are finished, run nothing")
    parser.add_argument("--report", action="store_true", help="print the tables of what is finished, run nothing")
    parser.add_argument("--keep", type=Path, help="also write the records of what is finished to this one Parquet file")
    parser.add_argument("--kept", type=Path, help="print the tables of such a file, run nothing")
    shared = parser.add_argument_group("what all rows share")
    meaning = dict(re.findall(r"^ +(\w+): (.+?)\.?$", Settings.__doc__ or "", re.MULTILINE))
    for field in fields(Settings):
        kind = {"str": str, "int": int, "float": float}[str(field.type)]
        told = f"{meaning[field.name]} (default %(default)s)"
        shared.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=told)
    return parser


def main() -> None:
    """Run, then print the tables."""
    parser = _parser()
    wanted = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    if wanted.kept is not None:
        try:
            told = tables(kept.read(wanted.kept))
        except (ValueError, FileNotFoundError) as error:
            parser.error(str(error))
        sys.stdout.write(f"{told}\n")
        return
    if wanted.workers < 1:
        parser.error(f"workers is {wanted.workers}, but it must be at least 1")
    settings = Settings(**{field.name: getattr(wanted, field.name) for field in fields(Settings)})
    transformers.utils.logging.disable_progress_bar()
    names = [name for asked in wanted.rows for name in _named(asked)]
    try:
        units = plan(names, wanted.budgets, wanted.seeds)
        digest = base_digest(settings)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    if wanted.list:
        _tell(units, unfinished(wanted.output, settings, units, digest))
        return
    if not wanted.report:
        _run(wanted.output, settings, units, wanted.workers, digest)
    if not (found := finished(wanted.output, settings, units, digest)):
        parser.error("no run is finished yet, so there is nothing to report: run some first, without --report")
    if wanted.keep is not None:
        kept.write(found, wanted.keep)
    facts = {
        **asdict(replace(settings, base=digest[:12])),
        "finished": f"{len(found)} of {len(units)} runs",
        "machine": f"{platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}",
    }
    sys.stdout.write(f"{tables(found)}\n\n{json.dumps(facts)}\n")


def _named(asked: str) -> list[str]:
    return [row.name for row in GROUPS[asked]] if asked in GROUPS else [asked]


def _tell(units: list[Unit], unfinished_ones: list[Unit]) -> None:
    left = {unit.label for unit in unfinished_ones}
    for unit in units:
        sys.stdout.write(f"{'        ' if unit.label in left else 'finished'} {unit.label}\n")


def _run(folder: Path, settings: Settings, units: list[Unit], workers: int, digest: str) -> None:
    left = len(unfinished(folder, settings, units, digest))
    _log.info("%d runs, %d of them finished", len(units), len(units) - left)
    started = time.monotonic()
    for done, unit in enumerate(run_all(folder, settings, units, workers, _log.info), 1):
        minutes = (time.monotonic() - started) / 60
        _log.info(
            "%s is finished; %d of %d, about %.0f min left", unit.label, done, left, minutes / done * (left - done)
        )


def tables(found: Sequence[tuple[Unit, list[Record]]]) -> str:
    """The tables of some runs, and digests of what they rest on."""
    results = gather(found)
    facts = {"suite": results.suite_digest[:12], "records": results.digest[:12]}
    return f"{page(results)}\n\n{json.dumps(facts)}"


if __name__ == "__main__":
    main()
