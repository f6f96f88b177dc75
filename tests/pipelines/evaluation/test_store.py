from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.evaluation.runner import EvaluateResult
from pipelines.evaluation.store import INDEX, index_of, read_index, write_index
from pipelines.evaluation.units import Generation, Unit, commit
from qmop.vtcbench.suite import SuiteManifest
from qmop.vtcbench.summary import summarise
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


def added(store: Path, unit: Unit, poisoned: dict[str, str] | None = None) -> tuple[str, ...]:
    """What an evaluation of one unit adds to the index of a store."""
    facts = {"checkpoint": unit.candidate.digest, "label": unit.candidate.label, "shard": unit.shard.url}
    found = [replace(record, **facts) for record in records("yes")]
    commit(unit, str(store), found, poisoned=poisoned)
    asked = SuiteManifest(
        folder="/suite", digest="suite", seed=0, count=5, items_per_shard=5, dimensions={}, probe="", shards=()
    )
    told = {f"{unit.candidate.label}: {key}": why for key, why in (poisoned or {}).items()}
    one = EvaluateResult(
        records=tuple(found), planned=1, done=1, reused=0, failed={}, suite=asked, units=(unit.id,), poisoned=told
    )
    return write_index(str(store), one, added=True)


LONGER = replace(UNIT, generation=Generation(max_new_tokens=16))
ANEW = replace(UNIT, candidate=replace(UNIT.candidate, digest="exported anew"))
SECOND = replace(UNIT, shard=replace(UNIT.shard, url="suite-000001.tar", sha256="t"))
OTHER = replace(UNIT, candidate=replace(UNIT.candidate, label="ab", digest="e"))


@pytest.mark.parametrize("newer", [LONGER, ANEW])
def test_the_newest_evaluation_of_a_label_replaces_the_older_whole(tmp_path: Path, newer: Unit) -> None:
    assert added(tmp_path, UNIT, {"k": "why"}) == ()
    assert added(tmp_path, SECOND) == ()
    assert added(tmp_path, OTHER, {"k": "why"}) == ()
    assert added(tmp_path, newer) == ("a",)
    index = index_of(str(tmp_path))
    assert index["units"] == [OTHER.id, newer.id]
    assert list(index["poisoned"]) == ["ab: k"]
    assert [row.label for row in summarise(read_index(str(tmp_path))[0], resamples=1).rows] == ["ab", "a"]


def test_what_others_did_of_the_same_evaluation_stays(tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    for unit in (UNIT, OTHER, SECOND, UNIT):
        assert added(tmp_path, unit) == ()
    assert index_of(str(tmp_path))["units"] == [UNIT.id, OTHER.id, SECOND.id]


def test_a_damaged_unit_of_others_is_left_for_its_reader_to_name(tmp_path: Path) -> None:
    added(tmp_path, UNIT)
    Path(UNIT.place(str(tmp_path))).write_bytes(b"damaged")
    assert added(tmp_path, LONGER) == ()
    with pytest.raises(ValueError, match="is damaged"):
        read_index(str(tmp_path))


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
