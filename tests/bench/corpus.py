"""Pictures to the trainer's doorstep: what our way through Ray Data costs beside a bare loop and beside `webdataset`.

All ways have the same two cores, decode with the same code, resize to 336 and normalise. The cost of a way is the CPU
time of every process that it needs, Ray's own included, per picture; a way's rate per core is one over that. Ways take
turns in rounds, and only ratios of two ways of one round count.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scipy import stats

from pipelines.corpus.manifest import Manifest
from tests.bench.corpus_photos import listed, write_corpus
from tests.bench.memory import watched
from tests.bench.projectors import progress

PICTURES, LONGER, ROUNDS = 2048, 4, 5
TURNS = ("bare", "loader", "ours")
NAMES = {"bare": "(a) bare loop", "loader": "(b) webdataset + DataLoader", "ours": "(c) ours, through Ray Data"}
LIMITS = {"bare": 0.8, "loader": 0.95}
RESUME_LIMIT, FLAT = 1.2, 1.1
_WAYS = "tests.bench.corpus_ways"


def way(name: str, folder: str) -> dict[str, Any]:
    """Run one way in a process of its own and read what it measured; `peak` in bytes of all its processes."""
    command = [sys.executable, "-m", _WAYS, name, folder]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if name == "once":
        with watched(process.pid, 0.3) as peak:
            said, complaint = process.communicate()
    else:
        said, complaint = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{name} failed:\n{complaint[-3000:]}")
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found | ({"peak": peak.bytes} if name == "once" else {})


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % interval (Student's t)."""
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return statistics.fmean(values), float(low), float(high)


def costs(folder: str) -> str:
    """The ratios of rates and where the time goes."""
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in TURNS}
    for number in range(ROUNDS):
        for turn in range(len(TURNS)):
            name = TURNS[(turn + number) % len(TURNS)]
            seen[name].append(way(name, folder))
            progress(f"corpus: round {number + 1} of {ROUNDS}, {name}: {seen[name][-1]['ms']:.2f} ms per picture")
    lines = ["| way | CPU ms per picture | pictures per second and core | wall ms per picture |", "|---|---|---|---|"]
    for name in TURNS:
        spent, wall = ([one[field] for one in seen[name]] for field in ("ms", "wall_ms"))
        lines.append(
            f"| {NAMES[name]} | {statistics.median(spent):.2f} | {1e3 / statistics.median(spent):.0f} | "
            f"{statistics.median(wall):.2f} |"
        )
    lines += ["", "| rate of ours over | five pairs, 95 % interval | goal |", "|---|---|---|"]
    for name, limit in LIMITS.items():
        ratios = [theirs["ms"] / ours["ms"] for theirs, ours in zip(seen[name], seen["ours"], strict=True)]
        mean, low, high = interval(ratios)
        met = "met" if mean >= limit else "missed"
        lines.append(f"| {NAMES[name]} | {mean:.2f} ({low:.2f}-{high:.2f}) | {limit}, {met} |")
    return "\n".join([*lines, "", breakdown(seen["ours"], statistics.median(one["ms"] for one in seen["bare"]))])


def breakdown(ours: list[dict[str, Any]], bare: float) -> str:
    """Our CPU time by process."""
    roles = sorted({role for one in ours for role in one["by_role"]})
    spent = {role: statistics.median(one["by_role"].get(role, 0.0) for one in ours) for role in roles}
    lines = ["| ours, by process | CPU ms per picture | of the bare loop |", "|---|---|---|"]
    ordered = sorted(roles, key=lambda role: -spent[role])
    return "\n".join([*lines, *(f"| {role} | {spent[role]:.3f} | {spent[role] / bare:.2f} |" for role in ordered)])


def first_batch(folder: str) -> str:
    """Resuming inside a corpus beside starting at its beginning."""
    found = way("starts", folder)
    progress(f"corpus: starts {found}")
    ratios = [resumed / fresh for fresh, resumed in zip(found["fresh"], found["resumed"], strict=True)]
    ratio = statistics.median(ratios)
    return (
        "| first batch | median | limit |\n|---|---|---|\n"
        f"| fresh start | {statistics.median(found['fresh']):.2f} s | none |\n"
        f"| resumed inside / fresh | {ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f}) | {RESUME_LIMIT}, "
        f"{'met' if ratio <= RESUME_LIMIT else 'missed'} |"
    )


def longer(manifest: Manifest, folder: str) -> Manifest:
    """A corpus that has the same shards several times, under other names."""
    Path(folder).mkdir()
    shards = []
    for number in range(LONGER * len(manifest.shards)):
        shard = manifest.shards[number % len(manifest.shards)]
        url = f"corpus-{number:06d}.tar"
        (Path(folder) / url).hardlink_to(Path(manifest.folder) / shard.url)
        shards.append(replace(shard, url=url))
    return listed(folder, shards)


def peaks(manifest: Manifest, folder: str) -> str:
    """Peak memory over a corpus and one that is several times as long."""
    short, long = (way("once", one.folder) for one in (manifest, longer(manifest, folder)))
    progress(f"corpus: peaks {short['peak'] / 2**20:.0f} and {long['peak'] / 2**20:.0f} MiB")
    ratio = long["peak"] / short["peak"]
    return (
        "| memory of all processes (PSS) | peak | limit |\n|---|---|---|\n"
        f"| {manifest.written} pictures | {short['peak'] / 2**20:.0f} MiB | none |\n"
        f"| {LONGER} times as many | {long['peak'] / 2**20:.0f} MiB, {ratio:.2f} of that | {FLAT}, "
        f"{'met' if ratio <= FLAT else 'missed'} |\n"
        f"| spilled to disk, longer corpus | {long['spilled'] / 2**20:.0f} MiB | 0, "
        f"{'missed' if long['spilled'] else 'met'} |"
    )


def run() -> str:
    """Everything, on one corpus of variants of photographs."""
    with tempfile.TemporaryDirectory() as scratch:
        progress(f"corpus: writing {PICTURES} pictures")
        manifest = write_corpus(f"{scratch}/corpus", PICTURES)
        size = sum(shard.filesize for shard in manifest.shards) / manifest.written / 1024
        head = f"{PICTURES} JPEGs of 640 x 480, {size:.0f} KiB each; {ROUNDS} rounds, two cores"
        parts = [costs(manifest.folder), first_batch(manifest.folder), peaks(manifest, f"{scratch}/longer")]
    return "\n\n".join([head, *parts])
