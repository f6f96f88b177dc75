from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from cluster.processes import descendants, end, ended_by_sigterm, handlers_kept, undisturbed

_STUBBORN = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""


def test_marked_children_and_theirs_are_ended_and_no_others() -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    marked = subprocess.Popen([sys.executable, "-c", _STUBBORN, "marker-7"], stdout=subprocess.PIPE, text=True)
    try:
        grandchild = int(marked.stdout.readline())  # type: ignore[union-attr]
        found = descendants("marker-7")
        assert {process.pid for process in found} == {marked.pid, grandchild}
        end(found, patience_s=0.5)
        assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in found)
        assert other.poll() is None
    finally:
        marked.kill()
        other.kill()
        other.wait()


def test_sigterm_unwinds_and_the_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as raised, ended_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_programs_own_handler_stays() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: seen.append(number))
    try:
        with ended_by_sigterm():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_clean_up_is_through(which: signal.Signals) -> None:
    steps: list[str] = []

    def clean_up() -> None:
        with ended_by_sigterm(), undisturbed():
            for _ in range(2):
                os.kill(os.getpid(), which)
                steps.append("after a signal")

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        clean_up()
    assert len(steps) == 2


def test_what_a_library_leaves_behind_is_put_back() -> None:
    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    with handlers_kept():
        for which in before:
            signal.signal(which, lambda *_: None)
    assert {which: signal.getsignal(which) for which in before} == before


def test_other_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[bool] = []

    def work() -> None:
        with ended_by_sigterm(), undisturbed():
            seen.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
