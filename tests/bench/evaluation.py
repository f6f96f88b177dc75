"""Four checkpoints on the rendered suite: `qmop evaluate` beside a loop over single questions, and beside batches.

All ways answer questions of one suite with the same weights. They are processes that are there at the same time and
take turns of a few seconds; who does not work is stopped (SIGSTOP), Ray's processes included. So the speed of a shared
machine is the same for all, and only ratios inside one round count. Start-up is over before the first turn; loading
the checkpoints counts. A way's time is the sum of its turns.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from qmop.loading import derive
from qmop.tiny.base import base_path
from qmop.vtcbench.suite import write_suite
from tests.bench.evaluation_ways import CHECKPOINTS
from tests.bench.projectors import progress
from tests.bench.taking_turns import end, family, tell
from tests.bench.verdicts import at_least, interval

WAYS = {
    "single": "(a) one question at a time, two threads",
    "batched": "(b) one process, batches, one thread",
    "threaded": "(c) one process, batches, two threads",
    "apart": "(d) ours, each checkpoint with tower passes of its own",
    "ours": "(e) ours, one tower pass for all",
}
LIMITS = {"single": 5.0, "batched": 1.6, "threaded": 1.1}
ITEMS, PER_SHARD, ROUNDS, TURN_S, RERUN_S = 1500, 250, 7, 3.0, 5.0
_MODULE, _LONGEST_S, _POLL_S = "tests.bench.evaluation_ways", 900.0, 0.02


@contextmanager
def started(way: str, folder: Path) -> Iterator[psutil.Popen]:
    """The process of a way, stopped as soon as it could begin; ended with all below it."""
    (folder / f"log-{way}").unlink(missing_ok=True)
    with (folder / f"log-{way}").open("w") as log:
        command = [sys.executable, "-m", _MODULE, way, str(folder)]
        process = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_environment(way))
    try:
        wait(folder / f"up-{way}", process, folder, way)
        tell(family([process]), signal.SIGSTOP)
        yield process
    finally:
        end([process])


def _environment(way: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"OMP_NUM_THREADS": "2" if way in {"single", "threaded"} else "1"}


def wait(mark: Path, process: psutil.Popen, folder: Path, way: str, longest_s: float = _LONGEST_S) -> bool:
    """Wait for a file; whether it came in time."""
    deadline = time.monotonic() + longest_s
    while not mark.exists():
        if process.poll() is not None:
            raise RuntimeError(f"{way} ended:\n{(folder / f'log-{way}').read_text()[-3000:]}")
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def one_round(folder: Path, number: int) -> dict[str, dict[str, Any]]:
    """Every way once, in turns; what each says, with the seconds of its turns."""
    for old in [*folder.glob("*-*"), folder / "features"]:
        shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
    with ExitStack() as stack:
        processes = {way: stack.enter_context(started(way, folder)) for way in WAYS}
        spent = dict.fromkeys(WAYS, 0.0)
        left = list(WAYS)[number % len(WAYS) :] + list(WAYS)[: number % len(WAYS)]
        for way in WAYS:
            (folder / f"go-{way}").touch()
        while left:
            for way in list(left):
                tell(family([processes[way]]), signal.SIGCONT)
                began = time.monotonic()
                done = wait(folder / f"done-{way}", processes[way], folder, way, TURN_S)
                spent[way] += time.monotonic() - began
                if done and way in {"apart", "ours"}:
                    wait(folder / f"again-{way}", processes[way], folder, way)
                if done:
                    left.remove(way)
                tell(family([processes[way]]), signal.SIGSTOP)
            left.reverse()
        said = {way: json.loads((folder / f"done-{way}").read_text()) for way in WAYS}
        reruns = {way: json.loads((folder / f"again-{way}").read_text())["seconds"] for way in ("apart", "ours")}
    found = {way: one | {"rate": one["items"] / spent[way], "again": reruns.get(way, 0.0)} for way, one in said.items()}
    rates = ", ".join(f"{way} {one['rate']:.1f}" for way, one in found.items())
    progress(f"evaluation: round {number + 1} of {ROUNDS}, items/s: {rates}")
    return found


def table(seen: list[dict[str, dict[str, Any]]]) -> str:
    """Ratios of rates with their intervals, and what a rerun takes."""
    lines = ["| way | answers per second, median |", "|---|---|"]
    lines += [f"| {title} | {statistics.median(one[way]['rate'] for one in seen):.1f} |" for way, title in WAYS.items()]
    lines += ["", f"| ratio, {len(seen)} rounds | mean, 95 % interval | limit |", "|---|---|---|"]
    for own in ("ours", "apart"):
        for other, limit in LIMITS.items():
            found = (mean, low, high) = interval([one[own]["rate"] / one[other]["rate"] for one in seen])
            verdict = f"{limit}, {at_least(found, limit)}"
            lines.append(f"| {WAYS[own]} / {WAYS[other]} | {mean:.2f} ({low:.2f}-{high:.2f}) | {verdict} |")
    again = max(one["ours"]["again"] for one in seen)
    looked = {int(one["ours"]["looked"]) for one in seen}
    lines += ["", "| rerun with nothing missing, start-up left out | longest | limit |", "|---|---|---|"]
    lines.append(f"| table included | {again:.1f} s | {RERUN_S:g} s, {'met' if again <= RERUN_S else 'missed'} |")
    lines += ["", f"Pictures through the shared tower: {', '.join(map(str, sorted(looked)))} of {ITEMS} in the suite."]
    return "\n".join(lines)


def run() -> str:
    """Draw the suite, derive the checkpoints, let the ways take turns, report."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        progress(f"evaluation: drawing {ITEMS} items")
        write_suite(folder / "suite", 1, ITEMS, min(PER_SHARD, ITEMS))
        for name, tokens in CHECKPOINTS.items():
            torch.manual_seed(0)
            model, processor = derive(base_path("tiny"), name, tokens)
            model.save_pretrained(folder / "checkpoints" / name)
            processor.save_pretrained(folder / "checkpoints" / name)
        seen = [one_round(folder, number) for number in range(ROUNDS)]
    head = f"{', '.join(CHECKPOINTS)} at 16 of 144 tokens, {ITEMS} items, two cores; {ROUNDS} rounds in turns of "
    return f"{head}{TURN_S:g} s\n\n{table(seen)}"
