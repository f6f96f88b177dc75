"""Pictures to the trainer's doorstep: what our way through Ray Data costs beside a bare loop and beside `webdataset`.

All ways have the same two cores, decode with the same code, resize to 336 and normalise. The cost of a way is the CPU
time of every process that it needs, Ray's own included, per picture; a way's rate per core is one over that. The speed
of a shared machine changes within seconds, so every way takes turns with the bare loop.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.corpus.manifest import Manifest
from tests.bench.corpus_photos import listed, write_corpus
from tests.bench.memory import watched
from tests.bench.projectors import progress
from tests.bench.verdicts import at_least, interval

PICTURES, LONGER, ROUNDS = 2048, 4, 5
NAMES = {"loader": "(b) webdataset + DataLoader", "ours": "(c) ours, through Ray Data"}
LIMITS = {"bare": ("(a) bare loop", 0.8), "loader": ("(b) webdataset + DataLoader", 0.95)}
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


def costs(folder: str) -> str:
    """The ratios of rates and where the time goes."""
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for number in range(ROUNDS):
        for name in sorted(NAMES, reverse=bool(number % 2)):
            seen[name].append(way(name, folder))
            own, bare = seen[name][-1]["ms"], seen[name][-1]["bare_ms"]
            progress(f"corpus: round {number + 1} of {ROUNDS}, {name}: {own:.2f} ms, bare loop {bare:.2f} ms")
    rates = {name: [one["bare_ms"] / one["ms"] for one in seen[name]] for name in NAMES}
    bare = statistics.median(one["bare_ms"] for many in seen.values() for one in many)
    lines = [
        "| way | CPU ms per picture | pictures per second and core | wall ms per picture |",
        "|---|---|---|---|",
        f"| (a) bare loop | {bare:.2f} | {1e3 / bare:.0f} | |",
    ]
    for name, title in NAMES.items():
        spent, wall = (statistics.median(one[field] for one in seen[name]) for field in ("ms", "wall_ms"))
        lines.append(f"| {title} | {spent:.2f} | {1e3 / spent:.0f} | {wall:.2f} |")
    ours = rates["ours"]
    compared = {"bare": ours, "loader": [own / theirs for own, theirs in zip(ours, rates["loader"], strict=True)]}
    lines += ["", "| rate of ours over | five pairs, 95 % interval | goal |", "|---|---|---|"]
    for name, (title, limit) in LIMITS.items():
        found = (mean, low, high) = interval(compared[name])
        lines.append(f"| {title} | {mean:.2f} ({low:.2f}-{high:.2f}) | {limit}, {at_least(found, limit)} |")
    return "\n".join([*lines, "", breakdown(seen["ours"])])


def breakdown(ours: list[dict[str, Any]]) -> str:
    """Our CPU time by process, each as a share of the bare loop that took turns with it."""
    roles = {role for one in ours for role in one["by_role"]}
    shares = {role: [one["by_role"].get(role, 0.0) / one["bare_ms"] for one in ours] for role in roles}
    ordered = sorted(roles, key=lambda role: -statistics.median(shares[role]))
    lines = ["| ours, by process | CPU time / bare loop |", "|---|---|"]
    return "\n".join([*lines, *(f"| {role} | {statistics.median(shares[role]):.3f} |" for role in ordered)])


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
