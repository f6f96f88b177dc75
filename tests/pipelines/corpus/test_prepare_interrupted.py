"""Processes that are killed while they prepare: the next run finishes the same corpus."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.holding import HeldError, held
from cluster.progress import Progress
from pipelines.corpus import prepare as module
from pipelines.corpus.manifest import Manifest, verify
from pipelines.corpus.parts import Job, Part
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import Duplicates
from pipelines.corpus.sources import Unit
from tests.pipelines.corpus.formats import Record, recipe, write

ROOT = Path(__file__).resolve().parents[3]
DEATHS = {
    "in the middle of a shard": """
def dying(source, target, length=0):
    data = source.read()
    target.write(data[: len(data) // 2])
    target.flush()
    if data[:9] == b"000000010":
        os.kill(os.getpid(), 9)
    target.write(data[len(data) // 2 :])
local.shutil.copyfileobj = dying
""",
    "between two shards": """
real = parts.Job.run
def dying(job, unit, repeated=None):
    if unit.index == 2:
        os.kill(os.getpid(), 9)
    return real(job, unit, repeated)
parts.Job.run = dying
""",
    "before the manifest": """
real = storage.write_atomic
def dying(uri, data):
    if str(uri).endswith("manifest.json"):
        os.kill(os.getpid(), 9)
    real(uri, data)
storage.write_atomic = dying
""",
}
SCRIPT = """
import os, sys
from cluster import local, storage
from cluster.progress import Progress
from pipelines.corpus import parts
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import Duplicates, PrepareRecipe
{death}
prepare(PrepareRecipe(source="folder", images=sys.argv[1], output=sys.argv[2], samples_per_shard=5,
                      duplicates=Duplicates(exact=True)), Progress())
"""
LEFT: dict[str, list[int]] = {
    "in the middle of a shard": [2, 3, 3],
    "between two shards": [2, 3, 3],
    "before the manifest": [],
}
"""The units that are left to make; the last one loses a repetition in a second pass."""


@pytest.mark.pipeline
@pytest.mark.timeout(180)
@pytest.mark.parametrize("death", DEATHS)
def test_a_killed_run_is_finished_to_the_same_corpus(
    death: str, jpegs: list[bytes], tmp_path: Path, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress(stream=lines)
    records = [Record(f"{number:02d}", data, f"Words {number}.") for number, data in enumerate(jpegs)]
    records += [Record("90", jpegs[0], "Words 0."), Record("91", b"", "x")]
    fields = write("folder", tmp_path / "raw", records)
    changes = {"duplicates": Duplicates(exact=True)}
    whole = prepare(recipe("folder", str(tmp_path / "whole"), fields, **changes), progress)
    output = tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT.format(death=DEATHS[death]), str(tmp_path / "raw"), str(output)]
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (output / "manifest.json").exists()
    assert bool(halves(output)) == (death == "in the middle of a shard")
    made: list[int] = []
    real = Job.run

    def noted(job: Job, unit: Unit, *repeated: Any) -> Part:
        made.append(unit.index)
        return real(job, unit, *repeated)

    monkeypatch.setattr(Job, "run", noted)
    again = prepare(recipe("folder", str(output), fields, **changes), progress)
    assert made == LEFT[death]
    assert (again.digest, again.quarantined) == (whole.digest, {"corrupt_image": 1, "duplicate": 1})
    verify(again)
    assert files(output) == files(tmp_path / "whole")
    assert "waiting" not in lines.getvalue()


def files(folder: Path) -> dict[str, bytes]:
    """Everything but the lease, which counts its holders."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if "prepare.lease.json" not in name}


def halves(folder: Path) -> list[Path]:
    """What a killed process had not finished to write."""
    return [path for path in folder.rglob(".qmop-tmp-*") if not path.name.endswith(".lock")]


def test_a_second_run_into_the_folder_is_refused_while_the_first_works(
    jpegs: list[bytes], tmp_path: Path, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [Record(f"{number:02d}", data, f"Words {number}.") for number, data in enumerate(jpegs[:7])]
    mine = recipe("folder", str(tmp_path / "out"), write("folder", tmp_path / "one", records))
    others = write("folder", tmp_path / "two", records[3:])
    refused: list[str] = []
    real = Job.run

    def overtaken(job: Job, unit: Unit, *repeated: Any) -> Part:
        part = real(job, unit, *repeated)
        if not refused:
            for overwrite in (False, True):
                with pytest.raises(HeldError) as caught:
                    prepare(recipe("folder", str(tmp_path / "out"), others, overwrite=overwrite), progress)
                refused.append(str(caught.value))
        return part

    monkeypatch.setattr(Job, "run", overtaken)
    manifest = prepare(mine, progress)
    assert (manifest.written, len(refused)) == (7, 2)
    verify(manifest)
    for said in refused:
        assert said.startswith(f"output {tmp_path / 'out'} is in use by process {os.getpid()} on ")
        assert "choose another output" in said


def test_who_waited_for_the_folder_finds_the_corpus_complete(
    jpegs: list[bytes], tmp_path: Path, progress: Progress, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [Record(f"{number:02d}", data, f"Words {number}.") for number, data in enumerate(jpegs[:7])]
    asked = recipe("folder", str(tmp_path / "out"), write("folder", tmp_path / "raw", records))
    real, first = held, list[Manifest]()

    def late(*given: Any, **named: Any) -> Any:
        monkeypatch.setattr(module, "held", real)
        first.append(prepare(asked, progress))
        monkeypatch.setattr(Job, "run", None)
        return real(*given, **named)

    monkeypatch.setattr(module, "held", late)
    assert prepare(asked, progress) == first[0]
    assert "nothing to do" in lines.getvalue()


def test_a_complete_corpus_is_not_touched(
    jpegs: list[bytes], tmp_path: Path, progress: Progress, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [Record(f"{number:02d}", data, f"Words {number}.") for number, data in enumerate(jpegs[:7])]
    fields = write("webdataset", tmp_path / "raw", records)
    first = prepare(recipe("webdataset", str(tmp_path / "out"), fields), progress)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    monkeypatch.setattr(Job, "run", None)
    assert prepare(recipe("webdataset", str(tmp_path / "out"), fields), progress) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times
    assert "nothing to do" in lines.getvalue()
