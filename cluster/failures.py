"""Failures of jobs that were started as they should be, and of the storages that they work on."""

from __future__ import annotations


class JobFailedError(Exception):
    """A job that began and did not get to its end; the message is one sentence for people, the cause is chained."""


class StorageError(OSError, ValueError):
    """A storage that cannot be reached or used; the message is one sentence for the user."""


class RefusedError(StorageError):
    """A storage that will refuse us again until somebody changes something: credentials, rights, or the place."""
