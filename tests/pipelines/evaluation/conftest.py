"""A small Ray cluster and a run with three exports, for tests of whole evaluations."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from tests.pipelines.evaluation.grounds import Ground
from tests.pipelines.evaluation.test_discovery import export


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """One cluster per file; processes that are started meanwhile find it too."""
    folder = tmp_path_factory.mktemp("evaluation")
    for step in (1, 2, 3):
        export(folder / "run", step, seed=step)
    with ray_session(RaySettings(num_cpus=6, object_store_mb=200), Progress(stream=io.StringIO())):
        yield Ground(folder=folder)
