from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.evaluation.runner import EvaluateResult
from pipelines.evaluation.store import INDEX, index_of, read_index, write_index
from pipelines.evaluation.units import commit
from qmop.vtcbench.suite import SuiteManifest
from tests.pipelines.evaluation.test_units import UNIT, records


def evaluated(store: Path, suite: str) -> None:
    """A store with one unit and its index."""
    found = records("yes")
    commit(UNIT, str(store), found)
    asked = SuiteManifest(
        folder=suite, digest="suite", seed=0, count=5, items_per_shard=5, dimensions={}, probe="", shards=(UNIT.shard,)
    )
    result = EvaluateResult(
        records=tuple(found), planned=1, done=1, reused=0, failed={}, suite=asked, units=(UNIT.id,), poisoned={}
    )
    write_index(str(store), result)


def test_a_store_may_be_moved_with_the_suite_inside(tmp_path: Path) -> None:
    store, moved = tmp_path / "store", tmp_path / "moved"
    evaluated(store, f"{store}/suite-0-5-5")
    assert read_index(str(store))[1] == f"{store}/suite-0-5-5"
    store.rename(moved)
    found, suite = read_index(str(moved))
    assert len(found) == 5
    assert suite == f"{moved}/suite-0-5-5"


@pytest.mark.parametrize("suite", ["/elsewhere/suite", "s3://bucket/suite"])
def test_a_suite_elsewhere_stays_where_it_is(tmp_path: Path, suite: str) -> None:
    evaluated(tmp_path, suite)
    assert read_index(str(tmp_path))[1] == suite


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"units": []}'])
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ValueError, match=rf"{INDEX} is damaged: delete it"):
        index_of(str(tmp_path))


def test_a_folder_without_an_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run `qmop evaluate"):
        index_of(str(tmp_path))
