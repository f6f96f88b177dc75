"""The index of a results store: which units the latest evaluation counted, so that a report needs nothing else."""

from __future__ import annotations

import json
from typing import Any

from cluster.storage import create_if_absent, exists, join, read_bytes, read_versioned, replace_if_match, write_atomic
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
        "suite": result.suite.folder,
        "suite_digest": result.suite.digest,
        "poisoned": result.poisoned,
    }
    if not added:
        write_atomic(place, _packed(ours))
        return
    while not create_if_absent(place, _packed(ours)):
        data, version = read_versioned(place)
        found = json.loads(data)
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
    """
    if not exists(join(store, INDEX)):
        raise FileNotFoundError(f"results {store} holds no {INDEX}: run `qmop evaluate --output {store}` first")
    index = json.loads(read_bytes(join(store, INDEX)))
    return records_of_ids(index["units"], store), index["suite"]


def _packed(index: dict[str, Any]) -> bytes:
    return (json.dumps(index, indent=1) + "\n").encode()
