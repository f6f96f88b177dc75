"""Shared by all tests: quiet libraries, no network, and the servers that several rooms need."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

pytest_plugins = ["tests.fixtures.other_cluster", "tests.fixtures.s3_server"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole pipelines first: beside a second worker the many short tests then fill what is left of the time."""
    items.sort(key=lambda item: item.get_closest_marker("pipeline") is None)
