"""One process at a time: a file by which a process holds a folder for as long as it lives, however it ends.

It is a lease that names its holder. One on this machine is asked of the operating system, so that whoever follows a
killed process need not wait; one on another machine is watched for signs of life.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from cluster.lease import Lease

_PATIENCE_S, _BEATS, _LOOK_S = 60.0, 4.0, 0.5
Say = Callable[[str], None]


class HeldError(ValueError):
    """Somebody else holds what was wanted; the message says who, since when, and what to do."""


def _machine() -> str:
    """What two processes share if one can see the other: a boot of a machine, and a namespace of process ids."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _began(pid: int) -> str:
    """When a process began, by a clock that nobody sets: in ticks since the boot, where the kernel tells them.

    Raises:
        psutil.NoSuchProcess: if there is no such process.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return f"{psutil.Process(pid).create_time():.2f}"


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that holds something.

    Attributes:
        host: its machine's name, for people.
        machine: what tells apart the places where process ids mean something else.
        pid: of the process.
        began: when the process began, for comparing with itself.
        since: when it took hold, for people.
        token: tells two holdings of one process apart.
    """

    host: str = field(default_factory=platform.node)
    machine: str = field(default_factory=_machine)
    pid: int = field(default_factory=os.getpid)
    began: str = field(default_factory=lambda: _began(os.getpid()))
    since: str = field(default_factory=lambda: datetime.now(UTC).isoformat(" ", "seconds"))
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def is_here(self) -> bool:
        """Whether this machine's list of processes tells of it."""
        return self.machine == _machine()

    def is_gone(self) -> bool:
        """Whether it surely lives no more."""
        if not self.is_here():
            return False
        try:
            return _began(self.pid) != self.began or psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


@contextmanager
def held(
    uri: str,
    what: str,
    *,
    say: Say,
    patience_s: float = _PATIENCE_S,
    wait: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Hold something while the block runs.

    A store that cannot hold anything (one without hard links or conditional writes, or out of reach) is a warning, and
    the block runs all the same.

    Args:
        uri: the file that says who holds it, local or in S3.
        what: is held, for people, such as ``output runs/mine``.
        say: takes a line when there is something to wait for or to warn of.
        patience_s: seconds of silence after which a holder on another machine counts as gone.
        wait: sleeps so many seconds.
        clock: seconds that only go forward.

    Raises:
        HeldError: if a process that lives holds it.
    """
    lease = Lease(uri, json.dumps(asdict(Holder()), sort_keys=True), patience_s, clock)
    try:
        _take(lease, what, say, patience_s, wait)
    except OSError as error:
        say(f"WARNING: nothing keeps a second run from {what}, this one goes on: {error}")
        yield
        return
    over = threading.Event()
    beats = threading.Thread(target=_beat, args=(lease, what, say, patience_s / _BEATS, over), name="held", daemon=True)
    beats.start()
    try:
        yield
    finally:
        over.set()
        beats.join()
        with suppress(OSError):  # it is given back by falling silent then
            lease.release()


def _take(lease: Lease, what: str, say: Say, patience_s: float, wait: Callable[[float], object]) -> None:
    waiting = False
    while not lease.take(_is_gone):
        holder = _read(lease.other) if lease.other else None
        if lease.other is None or (holder is not None and holder.is_gone()):
            wait(_LOOK_S)  # it was free, and somebody was quicker: who it is shows next time
            continue
        name = "another process" if holder is None else f"process {holder.pid} on {holder.host} since {holder.since}"
        if lease.lively or (holder is not None and holder.is_here()):
            raise HeldError(
                f"{what} is in use by {name}: wait until it has ended, end it, or choose another output; the same "
                "command then goes on"
            )
        if not waiting:
            say(f"{what} was in use by {name}: waiting for a sign of life, {patience_s:.0f} s at most")
            waiting = True
        wait(_LOOK_S)


def _is_gone(holder: str) -> bool:
    found = _read(holder)
    return found is not None and found.is_gone()


def _read(holder: str) -> Holder | None:
    """A holder as it was written down; None for one of another version."""
    try:
        return Holder(**json.loads(holder))
    except (TypeError, ValueError):
        return None


def _beat(lease: Lease, what: str, say: Say, every_s: float, over: threading.Event) -> None:
    while not over.wait(every_s):
        with suppress(OSError):  # a storage that is away for a moment; the next beat tries again
            if not lease.renew():
                say(f"WARNING: another run has taken over {what}, since this one was silent for too long: end one")
                return
