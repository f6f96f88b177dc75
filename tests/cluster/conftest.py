"""Shared by the tests of ``cluster``."""

from __future__ import annotations

import io

import pytest

from cluster.progress import Progress


@pytest.fixture
def lines() -> io.StringIO:
    """What ``progress`` has written."""
    return io.StringIO()


@pytest.fixture
def progress(lines: io.StringIO) -> Progress:
    return Progress(lines)
