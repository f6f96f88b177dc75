"""What a training step of ours costs beside DeepSpeed alone and beside torch's DistributedDataParallel.

Three pairs of processes are there at the same time and take turns, some steps each; who does not work is stopped
(SIGSTOP), Ray's processes included. So the speed of a shared machine is the same for all, and only ratios inside one
round count.
"""

from __future__ import annotations

import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from cluster.ports import free_port
from cluster.progress import Progress
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
from tests.bench.projectors import progress
from tests.bench.taking_turns import cpu_seconds, cpu_since, end, family, tell
from tests.bench.training_restart import restart
from tests.bench.training_ways import LAYERS, ROUNDS, STEPS, TRAINER, WIDTH, WORLD, make_base, recipe_in
from tests.bench.verdicts import at_most, interval

WAYS = {
    "ddp": "(i) torch DDP",
    "deepspeed": "(ii) DeepSpeed alone",
    "beside": "(ii') the same beside Ray's processes, idle",
    "ours": "(iii) ours under Ray Train",
}
WARM, SAMPLES = 2, 2000
_MODULE, _LONGEST_S, _POLL_S = "tests.bench.training_ways", 300.0, 0.02


@contextmanager
def group(way: str, folder: Path) -> Iterator[list[psutil.Popen]]:
    """The processes that were started for a way; ended with all below them."""
    command = [sys.executable, "-m", _MODULE, way, str(folder)]
    shared = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(free_port())
    environments = [os.environ] if way == "ours" else [shared | {"RANK": str(rank)} for rank in range(WORLD)]
    log = (folder / f"{way}.log").open("w")
    started = [psutil.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT) for env in environments]
    try:
        yield started
    finally:
        end(started)


class Turns:
    """Lets one way work at a time."""

    def __init__(self, folder: Path, processes: dict[str, list[psutil.Popen]]) -> None:
        self.folder, self.processes = folder, processes
        self.taken = dict.fromkeys(processes, 0)

    def take(self, way: str) -> dict[str, Any]:
        """Let a way take its next steps; what it measured, with the CPU seconds of a step in all that were awake."""
        who = "deepspeed" if way == "beside" else way
        awake = self._awake(way)
        number, log = self.taken[who], self.folder / f"{who}.log"
        self.taken[who] += 1
        before = cpu_seconds(awake)
        tell(awake, signal.SIGCONT)
        (self.folder / f"go-{who}-{number}").touch()
        done, deadline = self.folder / f"done-{who}-{number}", time.monotonic() + _LONGEST_S
        while not done.exists():
            ended = [process for process in self.processes[who] if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"{who} did not take its steps:\n{log.read_text()[-3000:]}")
            time.sleep(_POLL_S)
        awake = self._awake(way)  # some may have begun meanwhile
        tell(awake, signal.SIGSTOP)
        said: dict[str, Any] = json.loads(done.read_text())
        return said | {"cpu": cpu_since(before, awake) / STEPS}

    def _awake(self, way: str) -> list[psutil.Process]:
        """Who works while it is a way's turn."""
        if way != "beside":
            return family(self.processes[way])
        trainers = {int(file.name.removeprefix(TRAINER)) for file in self.folder.glob(f"{TRAINER}*")}
        idle = [process for process in family(self.processes["ours"]) if process.pid not in trainers]
        return family(self.processes["deepspeed"]) + idle


def rounds(folder: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """What the ways measured, round for round, and ours in one more block, which begins with saving a state."""
    seen: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with group("ddp", folder) as ddp, group("deepspeed", folder) as deepspeed, group("ours", folder) as ours:
        turns = Turns(folder, {"ddp": ddp, "deepspeed": deepspeed, "ours": ours})
        for number in range(ROUNDS):
            for turn in range(len(WAYS)):
                way = list(WAYS)[(turn + number) % len(WAYS)]
                said = turns.take(way)
                progress(f"training: round {number + 1} of {ROUNDS}, {way}: {said['seconds']:.3f} s a step")
                seen[way].append(said)
        saving = turns.take("ours")
    return {way: many[WARM:] for way, many in seen.items()}, saving


def table(seen: dict[str, list[dict[str, Any]]], saving: dict[str, Any]) -> str:
    """Ratios with their intervals, and what training waits for."""
    seconds = {way: [one["seconds"] for one in many] for way, many in seen.items()}
    lines = [
        "| way | seconds a step | CPU seconds a step, the trainers | all its processes |",
        "|---|---|---|---|",
    ]
    for way, many in seen.items():
        own, spent = (statistics.median(one[which] for one in many) for which in ("own_cpu", "cpu"))
        lines.append(f"| {WAYS[way]} | {statistics.median(seconds[way]):.3f} | {own:.3f} | {spent:.3f} |")
    lines += ["", f"| ratio, {ROUNDS - WARM} rounds | mean, 95 % interval | limit |", "|---|---|---|"]
    pairs = (("ours", "deepspeed", 1.025), ("ours", "beside", None), ("beside", "deepspeed", None))
    for one, other, limit in (*pairs, ("deepspeed", "ddp", None)):
        found = (mean, low, high) = interval([a / b for a, b in zip(seconds[one], seconds[other], strict=True)])
        verdict = "none" if limit is None else f"{limit}, {at_most(found, limit)}"
        lines.append(f"| {WAYS[one]} / {WAYS[other]} | {mean:.3f} ({low:.3f}-{high:.3f}) | {verdict} |")
    step = statistics.median(seconds["ours"])
    waited = statistics.median(one["waited_s"] for one in seen["ours"]) / step
    stall = saving["stalled_s"] / (100 * step)
    lines += ["", "| ours waits for | share of the time | limit |", "|---|---|---|"]
    lines.append(f"| data | {100 * waited:.2f} % | 1 %, {'met' if waited < 0.01 else 'missed'} |")
    lines.append(f"| states, one every 100 steps | {100 * stall:.2f} % | 1 %, {'met' if stall < 0.01 else 'missed'} |")
    return "\n".join(lines)


def run() -> str:
    """Make a corpus, let the three take turns, report."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wanted = PrepareRecipe(source="rendered", output=str(folder / "corpus"), count=SAMPLES, samples_per_shard=200)
        prepare(wanted, Progress(stream=io.StringIO()))
        make_base(folder)
        seen, saving = rounds(folder)
        stood = restart(recipe_in(folder))
    head = f"QMoP over {LAYERS} Llama layers of width {WIDTH}, {WORLD} processes with one thread each, "
    head += "8 samples a step, ZeRO-1, fp32; "
    return f"{head}{ROUNDS - WARM} rounds of {STEPS} steps\n\n{table(seen, saving)}\n\n{stood}"
