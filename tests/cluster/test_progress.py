from __future__ import annotations

import io
import time

import pytest

from cluster.progress import Progress


def test_lines_carry_seconds_and_are_never_read_as_markup(progress: Progress, lines: io.StringIO) -> None:
    progress.say("kept [16 of 144] tokens")
    assert lines.getvalue().endswith("kept [16 of 144] tokens\n")
    assert lines.getvalue().split()[0].endswith("s")


def test_a_stage_says_its_start_and_its_end(progress: Progress, lines: io.StringIO) -> None:
    with progress.stage("Reading"):
        pass
    start, end = lines.getvalue().splitlines()
    assert start.endswith("Reading ...")
    assert "Reading: done in 0." in end


def test_a_failing_stage_says_so_and_lets_the_error_through(progress: Progress, lines: io.StringIO) -> None:
    with pytest.raises(KeyError), progress.stage("Reading"):
        raise KeyError
    assert "Reading: failed after" in lines.getvalue()
    assert "done" not in lines.getvalue()


def test_a_silent_stage_gives_signs_of_life(lines: io.StringIO) -> None:
    with Progress(lines, heartbeat_s=0.5).stage("Waiting"):
        deadline = time.monotonic() + 10
        while "still going" not in lines.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "Waiting: still going after 1 s" in lines.getvalue()


def test_updates_are_thinned_but_the_end_is_always_said(progress: Progress, lines: io.StringIO) -> None:
    for done in range(1, 101):
        progress.update("Rendering", done, 100, note="scenes")
    said = lines.getvalue().splitlines()
    assert len(said) == 2
    assert said[0].endswith("Rendering: 1/100 (1 %)  scenes")
    assert said[-1].endswith("Rendering: 100/100 (100 %)  scenes")


def test_an_unknown_total_divides_nothing(progress: Progress, lines: io.StringIO) -> None:
    progress.update("Reading", 0, 0)
    assert lines.getvalue().endswith("Reading: 0/0\n")
