"""Runs by themselves: the same every time, kept whole or not at all, and finished by whoever calls next."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from qmop.tiny.comparison import runs
from qmop.tiny.comparison.material import Material, base_digest
from qmop.tiny.comparison.rows import ROWS, Settings
from qmop.tiny.comparison.runs import examine, finished, result_path, run_all, run_unit, unfinished
from qmop.tiny.comparison.student import enrol, see
from qmop.vtcbench.records import Record
from tests.qmop.tiny.comparison.conftest import SETTINGS, unit

DIGEST = base_digest(SETTINGS)


def apart_from_time(records: list[Record]) -> list[Record]:
    return [replace(record, seconds=0.0) for record in records]


def in_this_process(workers: int, **_: Any) -> ThreadPoolExecutor:
    """A pool that need not import everything anew."""
    return ThreadPoolExecutor(workers)


def test_a_killed_run_leaves_nothing_half_done_and_the_next_call_does_the_rest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest in another process, where a run gives what it gives here."""
    wanted = [unit("prune"), unit("downsample")]
    paths = [result_path(folder, SETTINGS, one, DIGEST) for one in wanted]
    paths[1].mkdir(parents=True)  # a run whose records cannot be put in their place
    done: list[str] = []

    def run() -> None:
        done.extend(one.label for one in run_all(folder, SETTINGS, wanted, 1, lambda _: None))

    with monkeypatch.context() as patched:
        patched.setattr(runs, "ProcessPoolExecutor", in_this_process)
        with pytest.raises(OSError, match=r"downsample.*parquet"):
            run()
    assert done == ["prune @16 #0"]
    assert paths[0].is_file()
    assert {path.name for path in paths[0].parent.iterdir()} <= {path.name for path in paths}
    paths[1].rmdir()
    assert unfinished(folder, SETTINGS, wanted, DIGEST) == [wanted[1]]
    kept = paths[0].stat().st_mtime_ns
    run()
    assert done == ["prune @16 #0", "downsample @16 #0"]
    assert paths[0].stat().st_mtime_ns == kept
    assert list(run_all(folder, SETTINGS, wanted, 1, lambda _: pytest.fail("worked again"))) == []
    found = finished(folder, SETTINGS, wanted, DIGEST)
    assert [(one.label, len(records)) for one, records in found] == [(one.label, 40) for one in wanted]
    paths[1].unlink()
    run_unit(folder, SETTINGS, wanted[1], DIGEST)
    again = finished(folder, SETTINGS, wanted, DIGEST)[1][1]
    assert apart_from_time(again) == apart_from_time(found[1][1])


def test_the_same_run_twice_gives_the_same_records(folder: Path) -> None:
    path, found = result_path(folder, SETTINGS, unit("qmop"), DIGEST), []
    for _ in range(2):
        run_unit(folder, SETTINGS, unit("qmop"), DIGEST)
        found += finished(folder, SETTINGS, [unit("qmop")], DIGEST)
        path.unlink()
    (_, first), (_, second) = found
    assert apart_from_time(first) == apart_from_time(second)
    assert 0.05 < sum(record.seconds for record in first) < 30


def test_records_say_what_was_asked_and_what_shaped_them(material: Material) -> None:
    one = unit("qmop", seed=4)
    student, pairs = enrol(SETTINGS, one), [row[0] for row in material.exam.by_picture]
    records = examine(student, one, material, one.digest(SETTINGS, DIGEST), 80.0)
    assert [record.key for record in records] == [item.key for item in material.items]
    assert [record.question for record in records] == [item.question for item in material.items]
    for name, expected in {
        "checkpoint": one.digest(SETTINGS, DIGEST),
        "label": "qmop @16 #4",
        "method": "qmop",
        "budget": 16,
        "visual_tokens": 16,
        "suite_digest": material.suite.digest,
        "seconds": 2.0,
    }.items():
        assert {getattr(record, name) for record in records} == {expected}
    weights = [record.branch_weights for record in records]
    _, compressed = student.answers(see(material.exam, pairs, student), pairs)
    assert compressed.branch_weights_BS is not None
    assert [list(one or ()) for one in weights] == compressed.branch_weights_BS.tolist()
    assert len(set(weights)) > 20
    assert all(one is not None and sum(one) == pytest.approx(1) and one.count(0.0) == 1 for one in weights)
    assert {record.prediction == record.prediction.strip() for record in records} == {True}


def test_plain_fusion_weighs_all_branches_alike(material: Material) -> None:
    records = examine(enrol(SETTINGS, unit("fusion")), unit("fusion"), material, "", 0.0)
    assert [record.branch_weights for record in records] == [pytest.approx((1 / 3,) * 3)] * 40


def test_items_are_judged_part_by_part(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    student = enrol(SETTINGS, unit("average_pool"))
    whole = examine(student, unit("average_pool"), material, "", 1.0)
    monkeypatch.setattr(runs, "_ANSWERED_AT_ONCE", 12)
    parts = examine(student, unit("average_pool"), material, "", 1.0)
    assert [record.key for record in parts] == [record.key for record in whole]
    same = sum(first.prediction == second.prediction for first, second in zip(parts, whole, strict=True))
    assert same >= 39  # shorter paddings add up in another order


def test_results_have_a_name_of_their_own(tmp_path: Path) -> None:
    longer = replace(SETTINGS, tune_steps=4)
    other = [(SETTINGS, unit("router: neither")), (longer, unit("router: neither")), (SETTINGS, unit("lambda 0.25"))]
    paths = [result_path(tmp_path, *asked, DIGEST) for asked in other]
    assert len({*paths, result_path(tmp_path, SETTINGS, unit("router: neither"), "another base")}) == 4
    assert paths[0].parent == tmp_path / "units"
    assert paths[0].name.startswith("router-neither-16-0-")
    assert Settings() != SETTINGS
    assert len({result_path(tmp_path, SETTINGS, unit(name), DIGEST) for name in ROWS}) == len(ROWS)


BUSY = """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from qmop.tiny.comparison.runs import _enter
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_enter)
    pool.submit(print, "begun", flush=True).result()
    pool.submit(time.sleep, 600).result()
"""


@pytest.mark.timeout(120)
def test_a_process_of_the_pool_ends_with_the_one_that_began_it(tmp_path: Path) -> None:
    script = tmp_path / "busy.py"
    script.write_text(BUSY)
    with psutil.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as main:
        assert main.stdout is not None
        assert main.stdout.readline() == b"begun\n"
        below = main.children(recursive=True)
        main.kill()
    assert below
    try:
        assert not psutil.wait_procs(below, timeout=60)[1]
    finally:
        for process in below:
            if process.is_running():
                process.kill()
