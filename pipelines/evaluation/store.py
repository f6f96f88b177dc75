"""The index of a results store: which units the latest evaluation counted, so that a report needs nothing else."""

from __future__ import annotations

import json

from cluster.storage import exists, join, read_bytes, write_atomic
from pipelines.evaluation.runner import EvaluateResult
from pipelines.evaluation.units import records_of_ids
from qmop.vtcbench.records import Record

INDEX = "evaluation.json"


def write_index(store: str, result: EvaluateResult) -> None:
    """Record the units of an evaluation and the folder of its suite."""
    index = {"units": list(result.units), "suite": result.suite.folder, "suite_digest": result.suite.digest}
    write_atomic(join(store, INDEX), (json.dumps(index, indent=1) + "\n").encode())


def read_index(store: str) -> tuple[list[Record], str]:
    """The records of the latest evaluation and the folder of its suite.

    Raises:
        FileNotFoundError: if the folder holds no evaluation.
    """
    if not exists(join(store, INDEX)):
        raise FileNotFoundError(f"results {store} holds no {INDEX}: run `qmop evaluate --output {store}` first")
    index = json.loads(read_bytes(join(store, INDEX)))
    return records_of_ids(index["units"], store), index["suite"]
