"""The limits that the quickstart keeps: wall time, memory of all its processes together, longest silence."""

import subprocess
import sys
import tempfile
import time

from tests.bench.memory import watched


def run() -> str:
    """Run the quickstart in a new folder and report; raises if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "jobs.cli", "quickstart", "--output", f"{folder}/run"]
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        silence, spoke = 0.0, started
        lines = []
        assert process.stdout is not None
        with watched(process.pid) as peak:
            for line in process.stdout:
                now = time.monotonic()
                silence, spoke = max(silence, now - spoke), now
                lines.append(line)
            process.wait()
    seconds = time.monotonic() - started
    if process.returncode:
        raise RuntimeError("the quickstart failed:\n" + "".join(lines[-30:]))
    return (
        "| quickstart | measured | limit |\n|---|---|---|\n"
        f"| wall time | {seconds:.0f} s | 600 s |\n"
        f"| peak memory of all processes (PSS) | {peak.bytes / 2**30:.2f} GiB | 8 GiB |\n"
        f"| longest silence | {silence:.1f} s | 20 s |\n\n"
        f"{''.join(line for line in lines if line.startswith('|') or ' A: ' in line)}"
    )
