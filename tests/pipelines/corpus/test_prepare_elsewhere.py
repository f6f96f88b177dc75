"""Preparing from and to an object store, and after a kill that nobody could catch."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import storage
from cluster.progress import Progress
from pipelines.corpus.manifest import Manifest, load_manifest, verify
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe

ROOT = Path(__file__).resolve().parents[3]
KILLED = """
import sys
from cluster.progress import Progress
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
prepare(PrepareRecipe(source="rendered", output=sys.argv[1], count=150, samples_per_shard=10), Progress())
"""


def upload(folder: Path, uri: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.put_file(path, storage.join(uri, str(path.relative_to(folder))))


@pytest.mark.pipeline
def test_a_llava_folder_in_s3_gives_the_same_corpus_in_s3(
    llava: Any, tmp_path: Path, bucket: str, progress: Progress, lines: io.StringIO
) -> None:
    llava.records[3]["image"] = "gone.jpg"
    llava.save()
    here = prepare(llava.recipe(tmp_path / "out"), progress)
    upload(llava.images.parent, f"{bucket}/llava")
    places = {"annotations": f"{bucket}/llava/train.json", "images": f"{bucket}/llava/images"}
    recipe = llava.recipe(f"{bucket}/corpus/", **places)
    there = prepare(recipe, progress)
    assert (there.digest, there.quarantined) == (here.digest, {"missing_image": 1})
    assert load_manifest(f"{bucket}/corpus") == there
    verify(there)
    assert prepare(recipe, progress) == there
    assert "nothing to do" in lines.getvalue()


@pytest.mark.pipeline
def test_an_img2dataset_folder_in_s3_gives_the_same_corpus(
    img2dataset: Path, tmp_path: Path, bucket: str, progress: Progress
) -> None:
    upload(img2dataset, f"{bucket}/laion")
    local = PrepareRecipe(source="img2dataset", images=str(img2dataset), output=str(tmp_path / "out"))
    remote = PrepareRecipe(source="img2dataset", images=f"{bucket}/laion", output=f"{bucket}/corpus")
    assert prepare(local, progress).digest == prepare(remote, progress).digest


@pytest.mark.pipeline
@pytest.mark.timeout(180)
def test_a_killed_run_is_finished_to_the_same_digest(
    rendered: Callable[..., Manifest], tmp_path: Path, lines: io.StringIO
) -> None:
    output = tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(output)], env=environment, stderr=subprocess.DEVNULL
    ) as run:
        while len(list(output.glob("parts/*.json"))) < 5:
            assert run.poll() is None
            time.sleep(0.002)
        run.send_signal(signal.SIGKILL)
    assert not (output / "manifest.json").exists()
    again = rendered(output=str(output), count=150, samples_per_shard=10)
    assert "kept from an earlier run" in lines.getvalue()
    assert again.digest == rendered(output=str(tmp_path / "whole"), count=150, samples_per_shard=10).digest
