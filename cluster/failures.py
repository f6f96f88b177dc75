"""Failures of jobs that were started as they should be."""

from __future__ import annotations


class JobFailedError(Exception):
    """A job that began and did not get to its end; the message is one sentence for people, the cause is chained."""
