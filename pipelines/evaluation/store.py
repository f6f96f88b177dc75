"""The index of a results store: which units the latest evaluation counted, so that a report needs nothing else."""

from __future__ import annotations

import json
from typing import Any

from cluster.conditional import create_if_absent, read_versioned, replace_if_match
from cluster.storage import exists, is_s3, join, read_bytes, write_atomic
from pipelines.evaluation.runner import EvaluateResult
from pipelines.evaluation.units import records_of_ids
from qmop.vtcbench.records import Record

INDEX = "evaluation.json"


def write_index(store: str, result: EvaluateResult, *, added: bool = False) -> None:
    """Record the units of an evaluation and the folder of its suite.

    Args:
        store: results store.
        result: of the evaluation.
        added: whether units that others have recorded, of the same suite, stay in it: several may watch one folder.
    """
    place = join(store, INDEX)
    ours: dict[str, Any] = {
        "units": list(result.units),
        "suite": _suite_within(result.suite.folder, store),
        "suite_digest": result.suite.digest,
        "poisoned": result.poisoned,
    }
    if not added:
        write_atomic(place, _packed(ours))
        return
    while not create_if_absent(place, _packed(ours)):
        data, version = read_versioned(place)
        found = _unpacked(data, place)
        if found["suite_digest"] != ours["suite_digest"]:
            found = {"units": [], "poisoned": {}}
        units = dict.fromkeys([*found["units"], *ours["units"]])
        both = {**ours, "units": list(units), "poisoned": {**found.get("poisoned", {}), **ours["poisoned"]}}
        if replace_if_match(place, _packed(both), version) is not None:
            return


def read_index(store: str) -> tuple[list[Record], str]:
    """The records of the latest evaluation and the folder of its suite.

    Raises:
        FileNotFoundError: if the folder holds no evaluation.
        ValueError: if one of its files is damaged.
    """
    index = index_of(store)
    suite = index["suite"]
    return records_of_ids(index["units"], store), join(store, suite) if _is_relative(suite) else suite


def index_of(store: str) -> dict[str, Any]:
    """What `write_index` wrote.

    Raises:
        FileNotFoundError: if the folder holds no evaluation.
        ValueError: if the file is damaged.
    """
    place = join(store, INDEX)
    if not exists(place):
        raise FileNotFoundError(f"results {store} holds no {INDEX}: run `qmop evaluate --output {store}` first")
    return _unpacked(read_bytes(place), place)


def _suite_within(folder: str, store: str) -> str:
    """A suite inside the store is told by its name there, so that the store can be moved."""
    return folder.removeprefix(join(store, ""))


def _is_relative(folder: str) -> bool:
    return not is_s3(folder) and not folder.startswith(("/", "~", "file:"))


def _unpacked(data: bytes, place: str) -> dict[str, Any]:
    try:
        index = json.loads(data)
    except ValueError as error:
        index = error
    if not isinstance(index, dict) or not {"units", "suite", "suite_digest"} <= index.keys():
        raise ValueError(f"{place} is damaged: delete it, and evaluate again; finished units stay")
    return index


def _packed(index: dict[str, Any]) -> bytes:
    return (json.dumps(index, indent=1) + "\n").encode()
