"""Loading without tables."""

from __future__ import annotations

import logging
import logging.handlers
import queue

from qmop.quiet import without_tables


def test_tables_are_left_out_but_errors_are_heard_and_everything_afterwards() -> None:
    logger, heard = logging.getLogger("transformers.modeling_utils"), queue.SimpleQueue[logging.LogRecord]()
    handler = logging.handlers.QueueHandler(heard)  # type: ignore[arg-type] - it only puts
    logger.addHandler(handler)
    try:
        with without_tables():
            logger.warning("a table")
            logger.error("an error")
        logger.warning("another table")
    finally:
        logger.removeHandler(handler)
    assert [heard.get_nowait().getMessage() for _ in range(2)] == ["an error", "another table"]
    assert heard.empty()
