"""Loading some of a checkpoint's weights without transformers' table of those that are left out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_tables() -> Iterator[None]:
    """Keep transformers from listing weights that the caller leaves out on purpose, or is about to fill in.

    What is missing stays in the loading report, for the caller to say in a sentence.
    """
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_grave)  # not a level: transformers does more work, and tells of it, where one is set
    try:
        yield
    finally:
        logger.removeFilter(_grave)


def _grave(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
