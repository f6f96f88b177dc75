"""Processes that take turns on one machine: who does not work is stopped."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import psutil


def family(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Processes and all below them."""
    found: dict[int, psutil.Process] = {}
    for process in processes:
        try:
            found |= {one.pid: one for one in (process, *process.children(recursive=True))}
        except psutil.NoSuchProcess:
            continue
    return list(found.values())


def tell(processes: Sequence[psutil.Process], what: signal.Signals) -> None:
    """Send a signal to processes."""
    for process in processes:
        try:
            process.send_signal(what)
        except psutil.NoSuchProcess:
            continue


def cpu_seconds(processes: Sequence[psutil.Process]) -> dict[int, float]:
    """CPU time so far of the processes that are there, by number."""
    spent: dict[int, float] = {}
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent[process.pid] = times.user + times.system
    return spent


def cpu_since(before: dict[int, float], processes: Sequence[psutil.Process]) -> float:
    """CPU seconds that processes have used since; those that ended meanwhile are not counted."""
    return sum(spent - before.get(number, 0.0) for number, spent in cpu_seconds(processes).items())


def end(started: Sequence[psutil.Popen]) -> None:
    """End processes and all below them, stopped or not."""
    everybody = family(started)
    tell(everybody, signal.SIGCONT)
    tell(everybody, signal.SIGKILL)
    for process in started:
        process.wait()
