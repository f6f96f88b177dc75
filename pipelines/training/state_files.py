"""States on their way out of an engine into files, while training goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

import tenacity
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cluster.storage import (
    StorageError,
    exists,
    join,
    put_file,
    read_bytes,
    remove,
    sha256_of,
    write_atomic,
)
from pipelines.training.fragments import KINDS, adam_steps, held
from pipelines.training.state_scratch import part_folder
from pipelines.training.states import (
    CARD,
    Part,
    StateCard,
    folder_name,
    forget,
    is_usable,
    newest_first,
    part_name,
    publish_state,
)

_ATTEMPTS, _LOOK_S = 4, 0.2
Tell = Callable[[dict[str, Any]], None]


@dataclass(kw_only=True)
class StateWriter:
    """Writes states beside the training; at most one is under way.

    A save copies this process's fragments to memory and returns; a thread writes, hashes and uploads them. In the
    process of rank 0 the thread then waits for the others' files, proves them and makes the state visible.

    Args:
        folder: of the run's states, local or remote.
        rank: of this process.
        world: number of processes.
        token: of this start of the processes, so that nobody takes a killed process's word for a live one's.
        keep: how many of the latest usable states stay.
        stages: names of the stages in their order.
        patience_s: seconds that the process of rank 0 waits for the others' files after its own. Training may stand
            still for so long, so it is less than what processes wait for each other.
        tell: what is called, from the thread, with a note when a state is visible or has failed, or when older ones
            could not be removed.
    """

    folder: str
    rank: int
    world: int
    token: str
    keep: int
    stages: tuple[str, ...]
    patience_s: float
    tell: Tell

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "states")
        self._under_way: Future[None] | None = None

    def save(self, engine: Any, **facts: Any) -> float:
        """Begin to save; every process calls it at the same step.

        Args:
            engine: DeepSpeed's.
            facts: the card's fields other than adam_step, parameters and parts.

        Returns:
            Seconds that training stood still for it, waiting for the state before included.
        """
        began = time.monotonic()
        self.wait()
        copies = {
            (fragment.name, fragment.start, fragment.whole): {k: fragment.view(k).to("cpu", copy=True) for k in KINDS}
            for fragment in held(engine)
        }
        facts["adam_step"] = adam_steps(engine)
        self._under_way = self._pool.submit(self._write, copies, facts)
        return time.monotonic() - began

    def wait(self) -> None:
        """Wait for the state that is under way, if any; what went wrong with it has been told."""
        if self._under_way is not None:
            self._under_way.result()
            self._under_way = None

    def _write(self, copies: dict[tuple[str, int, int], dict[str, Tensor]], facts: dict[str, Any]) -> None:
        name = folder_name(facts["stage"], facts["step"])
        uri, began = join(self.folder, name), time.monotonic()
        try:
            self._write_part(uri, copies)
            if self.rank == 0:
                whole = self._gather(uri, facts)
                note = {"kind": "state", "name": name, "bytes": whole, "seconds": time.monotonic() - began}
                self.tell(note)
                self._forget_old(name)
        except (OSError, ValueError, SafetensorError) as error:  # training goes on; the state before stays
            self.tell({"kind": "state_failed", "name": name, "rank": self.rank, "error": str(error)})
            with suppress(OSError, ValueError):  # the same trouble may stand in the way of this as well
                self._give_up(uri, error)

    def _write_part(self, uri: str, copies: dict[tuple[str, int, int], dict[str, Tensor]]) -> None:
        name = part_name(self.rank, self.world)
        with part_folder(self.folder) as scratch:
            path = scratch / name
            save_file({f"{kind}/{key}": t for (key, *_), by in copies.items() for kind, t in by.items()}, path)
            part = Part(
                name=name,
                size=path.stat().st_size,
                sha256=sha256_of(path),
                fragments={key: (start, len(by[KINDS[0]])) for (key, start, _), by in copies.items()},
            )
            _proved(path, copies)
            _uploaded(path, join(uri, name))
        said = {"part": asdict(part), "wholes": {key: whole for key, _, whole in copies}}
        write_atomic(self._note(uri, self.rank), json.dumps(said).encode())

    def _gather(self, uri: str, facts: dict[str, Any]) -> int:
        """Wait for every process's file and make the state visible; its bytes."""
        said = self._said(uri)
        parts = tuple(Part(**one["part"]) for one in said)
        wholes = {name: whole for one in said for name, whole in one["wholes"].items()}
        publish_state(uri, StateCard(parameters=wholes, parts=parts, **facts))
        for rank in range(self.world):
            remove(self._note(uri, rank))
        return sum(part.size for part in parts)

    def _note(self, uri: str, rank: int) -> str:
        """Where a process says what its file holds."""
        return join(uri, f"{part_name(rank, self.world)}.{self.token}.json")

    def _said(self, uri: str) -> list[dict[str, Any]]:
        """What every process says of its file, by rank; the first that says it has failed ends the waiting."""
        said: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + self.patience_s
        while missing := [rank for rank in range(self.world) if rank not in said]:
            for rank in missing:
                if exists(self._note(uri, rank)):
                    said[rank] = json.loads(read_bytes(self._note(uri, rank)))
                    if why := said[rank].get("failed"):
                        raise ValueError(f"the process of rank {rank} could not give its part ({why})")
            if len(said) < self.world:
                if time.monotonic() > deadline:
                    place = self._note(uri, next(rank for rank in missing if rank not in said))
                    raise TimeoutError(f"{place} did not appear within {self.patience_s:g} s, half of watchdog_s")
                time.sleep(_LOOK_S)
        return [said[rank] for rank in range(self.world)]

    def _give_up(self, uri: str, error: Exception) -> None:
        """Say so to the process of rank 0, which waits; of a state that is not visible it makes room on the disk."""
        if self.rank != 0:
            write_atomic(self._note(uri, self.rank), json.dumps({"failed": str(error)}).encode())
        elif not exists(join(uri, CARD)):
            forget(uri)

    def _forget_old(self, name: str) -> None:
        """Delete what lies behind the latest usable states, counted back from the one just written.

        Newer ones were refused when the run began from an older place; to go by their steps would delete this one.
        """
        usable = 0
        try:
            for uri in dropwhile(lambda uri: uri.rsplit("/", 1)[-1] != name, newest_first(self.folder, self.stages)):
                if usable == self.keep:
                    forget(uri)
                elif is_usable(uri):
                    usable += 1
        except (OSError, ValueError) as error:
            self.tell({"kind": "states_kept", "name": name, "error": str(error)})


def _proved(path: Path, copies: dict[tuple[str, int, int], dict[str, Tensor]]) -> None:
    """Read back what was written, before anybody relies on it."""
    with safe_open(path, framework="pt") as file:
        for (name, *_), by in copies.items():
            for kind, values in by.items():
                if not torch.equal(file.get_tensor(f"{kind}/{name}").view(torch.int32), values.view(torch.int32)):
                    raise ValueError(f"{path.name}: {kind} of {name} differs after writing; is the disk sound?")


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(StorageError),
    stop=tenacity.stop_after_attempt(_ATTEMPTS),
    wait=tenacity.wait_exponential_jitter(initial=0.5, max=10.0),
    reraise=True,
)
def _uploaded(path: Path, uri: str) -> None:
    put_file(path, uri)
