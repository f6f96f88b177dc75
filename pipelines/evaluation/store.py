"""The index of a results store: which units the latest evaluation counted, so that a report needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.conditional import create_if_absent, read_versioned, replace_if_match
from cluster.storage import exists, is_s3, join, read_bytes, write_atomic
from pipelines.evaluation.runner import EvaluateResult
from pipelines.evaluation.units import facts_of, records_of_ids
from qmop.vtcbench.records import Record

INDEX = "evaluation.json"
_READERS = 16


def write_index(store: str, result: EvaluateResult, *, added: bool = False) -> tuple[str, ...]:
    """Record the units of an evaluation and the folder of its suite.

    Args:
        store: results store.
        result: of the evaluation.
        added: whether units that others have recorded, of the same suite, stay in it: several may watch one folder. A
            label has one checkpoint and one way of generating in it; of two, the evaluation that ends last stays.

    Returns:
        The labels whose earlier units were replaced by those of another checkpoint or way of generating.
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
        return ()
    while not create_if_absent(place, _packed(ours)):
        data, version = read_versioned(place)
        found = _unpacked(data, place)
        if found["suite_digest"] != ours["suite_digest"]:
            found = {"units": [], "poisoned": {}}
        both, replaced = _merged(found, ours, store)
        if replace_if_match(place, _packed(both), version) is not None:
            return replaced
    return ()


def _merged(found: dict[str, Any], ours: dict[str, Any], store: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Two indices of one suite as one, and the labels that stand for something else from now on."""
    theirs = set(found["units"]).difference(ours["units"])
    sat = _sittings([*ours["units"], *theirs], store) if theirs else {}
    now = dict(sat[name] for name in ours["units"] if name in sat)
    gone = {name for name in theirs if name in sat and now.get(sat[name][0], sat[name][1]) != sat[name][1]}
    replaced = tuple(sorted({sat[name][0] for name in gone}))
    units = dict.fromkeys([*(name for name in found["units"] if name not in gone), *ours["units"]])
    before = found.get("poisoned", {}).items()
    kept = {item: why for item, why in before if not item.startswith(tuple(f"{label}: " for label in replaced))}
    return {**ours, "units": list(units), "poisoned": {**kept, **ours["poisoned"]}}, replaced


def _sittings(ids: Sequence[str], store: str) -> dict[str, tuple[str, str]]:
    """By unit, its label, and the checkpoint and way of generating that the label stands for there.

    A unit whose file is damaged, gone, or of an earlier version that wrote nothing down, is left out.
    """

    def sitting(name: str) -> tuple[str, str] | None:
        try:
            facts = facts_of(name, store)
            return facts["label"], json.dumps([facts["checkpoint"], facts["generation"]], sort_keys=True)
        except (FileNotFoundError, KeyError, ValueError):  # who reads the store is told
            return None

    with ThreadPoolExecutor(_READERS) as pool:
        found = zip(ids, pool.map(sitting, ids), strict=True)
        return {name: sat for name, sat in found if sat is not None}


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
