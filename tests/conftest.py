"""Shared by all tests: quiet libraries, no network, and the servers that several rooms need."""

import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

# A shell ignores Ctrl-C for what it starts in the background, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
pytest_plugins = ["tests.fixtures.other_cluster", "tests.fixtures.s3_server"]


PIPELINE_LIMIT_S = 900
"""A guard against hanging, not a measure: on a machine that others use too a pipeline takes three times as long."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with whole pipelines first: beside a second worker many short tests then fill up the time."""
    pipelines = [item for item in items if item.get_closest_marker("pipeline")]
    for item in pipelines:
        item.add_marker(pytest.mark.timeout(PIPELINE_LIMIT_S))
    long = {item.path for item in pipelines}
    items.sort(key=lambda item: item.path not in long)
