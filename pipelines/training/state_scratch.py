"""Where parts of states lie on a local disk before they are uploaded, or after they are fetched."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.local import path_of
from cluster.scratch import owned_folder
from cluster.storage import is_s3


@contextmanager
def part_folder(states: str) -> Iterator[Path]:
    """A folder for copies of parts, gone at the end; what a killed process of this machine left is removed first.

    Args:
        states: folder of a run's states. The copies lie below it where it is local, on the disk that has room for
            states; with S3 in this machine's folder for temporary files (``TMPDIR``).
    """
    parent = Path(tempfile.gettempdir()) if is_s3(states) else path_of(states)
    with owned_folder(parent, f"qmop-state-{platform.node()}-") as folder:
        yield folder
