"""Evaluation for real: two checkpoints, two processes, a store that is never computed twice."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.progress import Progress
from cluster.session import RaySettings
from pipelines.evaluation.recipe import EvaluateRecipe, SuiteRecipe
from pipelines.evaluation.runner import evaluate
from pipelines.evaluation.store import read_index, write_index
from tests.pipelines.evaluation.test_discovery import export

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(240)]


def test_units_are_done_once_counted_and_found_again(tmp_path: Path) -> None:
    first = export(tmp_path / "run", 1)
    export(tmp_path / "run", 2, seed=1)
    store = str(tmp_path / "store")
    asked = EvaluateRecipe(
        checkpoints=[str(first)],
        output=store,
        rendered=SuiteRecipe(seed=3, count=20, items_per_shard=10),
        ray=RaySettings(num_cpus=4),
    )
    alone = evaluate(asked, Progress())
    assert (alone.planned, alone.done, alone.reused, alone.failed) == (2, 2, 0, {})
    both = EvaluateRecipe(**{**vars(asked), "checkpoints": [str(tmp_path / "run")]})
    together = evaluate(both, Progress())
    assert (together.planned, together.done, together.reused) == (4, 2, 2)
    assert len(together.records) == 40
    assert {record.visual_tokens for record in together.records} == {16}
    write_index(store, together)
    assert read_index(store)[0] == list(together.records)
    units = list(Path(store, "units").glob("*.parquet"))
    assert len(units) == 4
    assert sum(pq.read_metadata(unit).num_rows for unit in units) == 40
