"""TensorBoard's event files in the run's folder `tensorboard`; they need neither a server nor a network.

A run that goes back to an earlier step says so in the file, as TensorFlow's sessions do: a reader then forgets what
it had from that step on, so that the later values win.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster.storage import absolute, is_s3, join, put_file

PACKAGE = INSTALL = "tensorboardX"
FOLDER = "tensorboard"
_COPY_EVERY_S = 60.0


def open_tracker(output: str, run_name: str, say: Callable[[str], None]) -> TensorBoard:
    """Begin a new event file beside those of earlier parts of the run."""
    del run_name  # TensorBoard names a run after its folder
    target = join(output, FOLDER)
    if not is_s3(target):
        return TensorBoard(Path(absolute(target)))
    folder = Path(tempfile.mkdtemp(prefix="qmop-events-"))
    return TensorBoard(folder, Copier(folder, target, say, every_s=_COPY_EVERY_S))


class TensorBoard:
    """Writes one event file.

    Args:
        folder: a local one.
        copier: takes the files to where they belong, if that is elsewhere.

    Raises:
        OSError: if the folder cannot be written, here and later.
    """

    def __init__(self, folder: Path, copier: Copier | None = None) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # noqa: PLC0415 - only where it is asked for

        folder.mkdir(parents=True, exist_ok=True)
        # Writes at once and raises; the library's SummaryWriter loses errors in a thread of its own.
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self._copier, self._last = copier, -1
        self._writer.flush()

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Show what the run is on the page of texts."""
        from tensorboardX.summary import text  # noqa: PLC0415

        words = yaml.safe_dump(dict(facts), sort_keys=False)
        self._write(0, summary=text("run", f"```yaml\n{words}```"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        from tensorboardX.proto.event_pb2 import SessionLog  # noqa: PLC0415
        from tensorboardX.proto.summary_pb2 import Summary  # noqa: PLC0415

        if self._last < 0 or step <= self._last:
            self._write(step, session_log=SessionLog(status=SessionLog.START))
        self._last = step
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=Summary(value=points))

    def close(self) -> None:
        """Finish the file, and copy it a last time."""
        self._writer.close()
        if self._copier is not None:
            self._copier.close()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415

        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
        self._writer.flush()


class Copier:
    """Copies the growing files of a local folder to a store, every minute and at the end.

    Args:
        folder: the local one; removed at the end, unless something in it was never copied.
        target: where to.
        say: takes one warning, however often the store fails.
        every_s: seconds between two copies.
    """

    def __init__(self, folder: Path, target: str, say: Callable[[str], None], *, every_s: float) -> None:
        self._folder, self._target, self._say, self._every_s = folder, target, say, every_s
        self._copied: dict[str, int] = {}
        self._warned = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="event-copier", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Copy what is left."""
        self._done.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._done.wait(self._every_s):
            self._copy()
        if self._copy():
            shutil.rmtree(self._folder, ignore_errors=True)
        else:
            self._say(
                f"WARNING: TensorBoard's files were not all copied to {self._target}: they stay in {self._folder}"
            )

    def _copy(self) -> bool:
        """Whether every file is there as it is here."""
        try:
            for path in sorted(self._folder.iterdir()):
                size = path.stat().st_size  # before the copy: what grows meanwhile goes with the next one
                if self._copied.get(path.name) != size:
                    put_file(path, join(self._target, path.name))
                    self._copied[path.name] = size
        except Exception as error:  # noqa: BLE001 - no trouble of a store may end a training
            if not self._warned:
                self._warned = True
                self._say(
                    f"WARNING: TensorBoard's files cannot be copied to {self._target}, which is tried again every "
                    f"{self._every_s:.0f} s: {error}"
                )
            return False
        return True
