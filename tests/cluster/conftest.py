"""Shared by the tests of ``cluster``."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from cluster.progress import Progress

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fixtures.s3_server import s3_process, s3_server  # type: ignore[import-not-found]

__all__ = ["s3_process", "s3_server"]


@pytest.fixture
def lines() -> io.StringIO:
    """What ``progress`` has written."""
    return io.StringIO()


@pytest.fixture
def progress(lines: io.StringIO) -> Progress:
    return Progress(lines)
