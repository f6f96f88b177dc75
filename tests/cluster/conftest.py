"""Shared by the tests of ``cluster``."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from cluster.progress import Progress

BUCKET = "test-bucket"


@pytest.fixture
def lines() -> io.StringIO:
    """What ``progress`` has written."""
    return io.StringIO()


@pytest.fixture
def progress(lines: io.StringIO) -> Progress:
    return Progress(lines)


@pytest.fixture(params=["local", "file", pytest.param("s3", marks=pytest.mark.pipeline)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that does not exist yet, in each kind of storage."""
    if request.param == "s3":
        request.getfixturevalue("s3_server")
        return f"s3://{BUCKET}/folder"
    return f"{'file://' if request.param == 'file' else ''}{tmp_path}/folder"


def listed(uri: str) -> str:
    """How a listing names a file."""
    return uri.removeprefix("file://")
