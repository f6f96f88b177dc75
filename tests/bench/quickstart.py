"""The limits that the quickstart keeps: wall time, memory of all its processes together, longest silence."""

import subprocess
import sys
import tempfile
import threading
import time

import psutil

_EVERY_S = 1.0


def _memory(process: psutil.Process) -> int:
    """Bytes of a process and all below it; memory that they share is counted once (proportional set size)."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def run() -> str:
    """Run the quickstart in a new folder and report; raises if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "jobs.cli", "quickstart", "--output", f"{folder}/run"]
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        peak, silence, spoke = [0], 0.0, started

        def watch() -> None:
            while process.poll() is None:
                try:
                    peak[0] = max(peak[0], _memory(psutil.Process(process.pid)))
                except psutil.NoSuchProcess:
                    return
                time.sleep(_EVERY_S)

        watcher = threading.Thread(target=watch)
        watcher.start()
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            now = time.monotonic()
            silence, spoke = max(silence, now - spoke), now
            lines.append(line)
        process.wait()
        watcher.join()
    seconds = time.monotonic() - started
    if process.returncode:
        raise RuntimeError("the quickstart failed:\n" + "".join(lines[-30:]))
    return (
        "| quickstart | measured | limit |\n|---|---|---|\n"
        f"| wall time | {seconds:.0f} s | 600 s |\n"
        f"| peak memory of all processes (PSS) | {peak[0] / 2**30:.2f} GiB | 8 GiB |\n"
        f"| longest silence | {silence:.1f} s | 20 s |\n"
    )
