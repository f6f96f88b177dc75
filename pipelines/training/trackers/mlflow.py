"""MLflow, through the server that MLFLOW_TRACKING_URI names; its lean client `mlflow-skinny` is enough.

MLflow appends and cannot take back: steps that a resumed run counts again are left out. Which of the server's runs
is ours stands in the run's folder, so that a run that is deleted and begun anew is a new one there as well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cluster.storage import exists, join, read_bytes, write_atomic

PACKAGE, INSTALL = "mlflow", "mlflow-skinny"
_OURS = "tracker-mlflow.txt"
_EXPERIMENT = "qmop"
_AT_ONCE, _LONGEST = 100, 500
_FOLLOWED = "train/loss"


def open_tracker(output: str, run_name: str, say: Callable[[str], None]) -> MLflow:
    """Find the run of an output on the server, or begin one."""
    del say
    return MLflow(join(output, _OURS), run_name)


class MLflow:
    """One run on an MLflow server; the experiment is MLFLOW_EXPERIMENT_NAME, or `qmop`.

    Args:
        place: the file that remembers the run.
        run_name: of a new run.

    Raises:
        ValueError: if no server is named.
        mlflow.exceptions.MlflowException: if the server refuses, here and later.
    """

    def __init__(self, place: str, run_name: str) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415 - only where it is asked for

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise ValueError("MLFLOW_TRACKING_URI is not set: set it to the address of your MLflow server")
        self._client, self._last = MlflowClient(), 0
        self._new = not exists(place)
        if self._new:
            self._run = self._begin(run_name)
            write_atomic(place, self._run.encode())
        else:
            self._run = read_bytes(place).decode().strip()
            self._client.update_run(self._run, status="RUNNING")
            self._last = max((point.step for point in self._client.get_metric_history(self._run, _FOLLOWED)), default=0)

    def _begin(self, run_name: str) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        return str(self._client.create_run(experiment, run_name=run_name).info.run_id)

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Parameters of a new run; those of an old one cannot be changed and stay."""
        from mlflow.entities import Param  # noqa: PLC0415

        if not self._new:
            return
        params = [Param(name, str(value)[:_LONGEST]) for name, value in flat(facts)]
        for start in range(0, len(params), _AT_ONCE):
            self._client.log_batch(self._run, params=params[start : start + _AT_ONCE])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve, unless the step is there already."""
        from mlflow.entities import Metric  # noqa: PLC0415

        if step <= self._last:
            return
        now = int(1000 * time.time())
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in values.items()])
        self._last = step

    def close(self) -> None:
        """The run has ended."""
        self._client.set_terminated(self._run)


def flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested facts with dots in their names."""
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
